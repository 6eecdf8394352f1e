#!/bin/sh
# ci/story.sh [MODEL]: the story, replayed: an output head in F32 whose GEMV reads its [N,K] weights as [K,N], on the path
# that serves, captured as a graph. Shows the first token of the F32 trace, of the serving path, and of that path with the
# bug; then one `parity run` must name result_output, the layout and the side, and support H4 alone. Prints the time it
# took. MODEL: a file or a registered name (default: qwen2.5-coder-1.5b where it is in the cache, else a made one whose
# heads a fused step serves).
# PATHS=REF,CAND: other paths, such as PATHS=f32,q4k-cpu for the CPU (default f32-cuda,q4k-cuda-graph: never
# anything else unless asked). Exit 0: told and named; 1: not named; 77: a path does not run here ("SKIPPED: why").
set -u
parity=${PARITY:-build/release/bin/parity}
paths=${PATHS:-f32-cuda,q4k-cuda-graph}
ref=${paths%%,*} cand=${paths#*,}
prompt='What is 2+2?'
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
cd "$(dirname "$0")/.." || exit 1

model=${1:-}
if [ -z "$model" ]; then
    model=qwen2.5-coder-1.5b
    "$parity" fixture path "$model" >/dev/null 2>&1 || model=
fi
set -- --prompt "$prompt" --chat
if [ -z "$model" ]; then
    model=$t/tiny.gguf
    "$parity" fixture make --shape tiny-64 -o "$model" 2>"$t/err" || { cat "$t/err"; exit 1; }
    set -- --tokens 72,101,108,108,111,44,32,119,111,114,108,100,33,10,40,41,59,33,34,35
fi

# first PATH [OPTION..]: the greedy first token after the prompt, with its text
first() {
    path=$1
    shift
    "$parity" generate "$model" --path "$path" --decode 1 --json "$@" >"$t/out" 2>"$t/err" || return
    id=$(tr -d '\n\t ' <"$t/out" | sed -n 's/.*"ids":\[\([0-9]*\)\].*/\1/p')
    text=$(sed -n 's/.*"text":[[:space:]]*\(".*"\),*$/\1/p' "$t/out")
}

echo "model          $model"
for path in $ref $cand; do
    if ! first "$path" "$@"; then
        echo "SKIPPED: $(sed 's/^parity: //' "$t/err" | head -n 1)"
        exit 77
    fi
    "$parity" paths | grep -A2 "^$path " | sed -n 's/^ *\(on .*\)/path           '"$path"' \1/p'
done

first "$ref" "$@" || exit 1
traced=$id
printf '%-44s token %-7s %s\n' "F32 trace ($ref)" "$id" "${text:-}"
first "$cand" --head f32 "$@" || exit 1
served=$id
printf '%-44s token %-7s %s\n' "what serves ($cand, F32 head)" "$id" "${text:-}"
first "$cand" --head f32 --fault f32-head-transposed "$@" || exit 1
broken=$id
printf '%-44s token %-7s %s\n' "what serves, head read as [K,N]" "$id" "${text:-}"

start=$(date +%s%N)
"$parity" run "$model" --ref "$ref" --paths "$cand" --head f32 --fault f32-head-transposed "$@" >"$t/out" 2>"$t/err"
code=$?
end=$(date +%s%N)
echo
sed -n '/^bug or noise/,/^covers/p' "$t/out"
grep '^H[0-9]  ' "$t/out"
grep -A12 '^arm  ' "$t/out" | sed -n '/^path_/p;/^unfused/p;/^head/p'
cat "$t/err"
echo
failed=0
check() { # NAME CONDITION..
    name=$1
    shift
    if "$@"; then echo "ok      $name"; else echo "FAILED  $name"; failed=1; fi
}
guilty=$(sed -n '/^guilty op/,/^worst/p' "$t/out" | sed '$d' | tr -s ' \n' '  ')
# shellcheck disable=SC2317 # called through check
is_named() { case $guilty in *result_output*weight-transposed*) ;; *) return 1 ;; esac }
# shellcheck disable=SC2317
is_sided() { grep -q "^which side  *the candidate, $cand" "$t/out"; }
# shellcheck disable=SC2317
is_h4_alone() { [ "$(sed -n 's/^\(H[0-9]\)  SUPPORTED.*/\1/p' "$t/out" | tr -d '\n')" = H4 ]; }
check "without the bug the first token is the trace's" [ "$served" = "$traced" ]
check "with it the first token is another" [ "$broken" != "$traced" ]
check "the run says DIVERGED (exit 1)" [ $code -eq 1 ]
check "it names result_output and the layout" is_named
check "it names the side: $cand" is_sided
check "it supports H4 (dispatch, layout) and no other" is_h4_alone
echo "time           $(awk -v ns=$((end - start)) 'BEGIN { printf "%.1f", ns / 1e9 }') s for the run that named it"
exit $failed
