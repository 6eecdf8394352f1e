#!/bin/sh
# ci/test_case.sh: a reproducer's way through the program. A run with a planted bug writes a case, which other processes
# find red for the recorded reason on every kernel of this machine, green without the bug, and refuse when it was cut
# short or is something else. PARITY: the program. Uses the built-in model only; needs no network.
set -u
cd "$(dirname "$0")/.." || exit 1
parity=${PARITY:-$PWD/build/release/bin/parity}
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
n_run=0 n_failed=0

# expect NAME CODE TEXT COMMAND...: that exit code, and TEXT in what it says (on either stream).
expect() {
    name=$1 code=$2 text=$3
    shift 3
    "$@" >"$t/out" 2>&1
    got=$?
    n_run=$((n_run + 1))
    if [ $got -eq "$code" ] && grep -qF -- "$text" "$t/out"; then
        printf 'ok      %s\n' "$name"
    else
        n_failed=$((n_failed + 1))
        printf 'FAILED  %s: exit %s, expected %s and "%s"\n%s\n' "$name" $got "$code" "$text" "$(head -c 1500 "$t/out")"
    fi
}

model=$t/made.gguf
"$parity" fixture make -o "$model" >/dev/null 2>&1 || { echo "FAILED  no made model"; exit 1; }
run() { # FAULT OPTIONS...
    fault=$1
    shift
    rm -rf "$t/report"
    "$parity" run "$model" --quick --tokens 72,101,108,108,111,44,32,119 -n 3 --fault "$fault" --report "$t/report" "$@"
}

# One fault of each kind of op: FAULT CASE-FILE OPTIONS...
while read -r fault file options; do
    # shellcheck disable=SC2086 # several words or none
    expect "$fault makes the run diverge" 1 "parity replay" run "$fault" $options
    case=$t/report/cases/$file
    [ -f "$case" ] || { ls "$t/report/cases" >"$t/out" 2>&1; case=$t/missing; }
    expect "$fault: its case is red" 1 "for the recorded reason" "$parity" replay "$case"
    expect "$fault: its case is green without it" 0 "HELD" "$parity" replay "$case" --no-fault
    expect "$fault: its case is red on plain kernels" 1 "outside their bound" "$parity" replay "$case" --caps ref
    bytes=$(wc -c <"$case" 2>/dev/null || echo 999999)
    expect "$fault: its case has $bytes bytes, at most 65536" 0 "$bytes" sh -c "echo $bytes; test $bytes -le 65536"
done <<EOF
q4k-min-dropped ffn_gate-0.case
q6k-as-q4k ffn_out-2.case
f32-head-transposed result_output.case --head f32
rope-pairing Qcur_rope-0.case
kv-row-stale K_cache-0.case
gqa-modulo kqv_out-0.case
eps-other-model attn_norm-0.case
EOF

expect "a matmul's case" 1 "DIVERGED" run q4k-min-dropped
case=$t/report/cases/ffn_gate-0.case
expect "as JSON" 1 '"same_reason":	true' "$parity" replay "$case" --json
expect "on one thread" 1 "for the recorded reason" "$parity" replay "$case" --threads 1
expect "on one chosen kernel" 1 "Q4_K ref" "$parity" replay "$case" --force matmul_q=ref
expect "on the reference path, which has no such bug" 0 "judged by this path's own" "$parity" replay "$case" --path f32
expect "on a path that is none" 2 "nowhere" "$parity" replay "$case" --path nowhere
expect "without a case" 2 "CASE is missing" "$parity" replay
expect "a case that is not there" 4 "cannot be opened" "$parity" replay "$t/none.case"
head -c 900 "$case" >"$t/short.case"
expect "a case cut short" 4 "short.case" "$parity" replay "$t/short.case"
expect "a model instead of a case" 4 "made.gguf" "$parity" replay "$model"
"$parity" trace "$model" --path q4k-cpu --tokens 1,2 -o "$t/c.parity" >/dev/null 2>&1
expect "a capture instead of a case" 4 "expected parity-case-v1" "$parity" replay "$t/c.parity"
expect "a case instead of a capture" 4 "expected parity-capture-v1" "$parity" diff "$case" "$t/c.parity"
expect "no file is left unverified" 0 "0" sh -c "find '$t/report' -name '*.unverified' | wc -l"

printf '%d cases of cases, %d failed\n' $n_run $n_failed
[ $n_run -ge 40 ] || { echo "FAILED  only $n_run were run"; exit 1; }
[ $n_failed -eq 0 ]
