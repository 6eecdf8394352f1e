#!/bin/sh
# ci/bench_gpu.sh PROGRAM MODEL [LLAMA_SOURCE]: our GPU paths beside llama.cpp on the same file and card, in one run, as
# one table. LLAMA_SOURCE: the unpacked source archive of llama-cpp-python 0.3.36 (pip download --no-binary :all:
# --no-deps llama-cpp-python==0.3.36), whose vendor/llama.cpp is built for this card into BUILD (default
# build/llama.cpp), once; or set LLAMA_BENCH to a llama-bench that is already there. Without either its column is said to be
# skipped. PATHS, STEPS, RUNS and PREFILLS: what is measured. Exit 77 where no GPU path runs (a line "SKIPPED: why").
set -eu
program=$1 model=$2 source=${3:-}
paths=${PATHS:-q4k-cuda-graph,bf16-cuda,fp8-cuda}
prefills=${PREFILLS:-78 512 4096} steps=${STEPS:-128} runs=${RUNS:-3} build=${BUILD:-build/llama.cpp}
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT

file=$("$program" fixture path "$model")
first=${paths%%,*}
if ! "$program" bench "$file" --paths "$first" --prefill 1 --steps 1 --runs 1 --tokens 1 >"$t/out" 2>"$t/err"; then
    echo "SKIPPED: $(sed 's/^parity: //' "$t/err" | head -n 1)"
    exit 77
fi
grep '^device' "$t/out" || true

bench=${LLAMA_BENCH:-}
if [ -z "$bench" ] && [ -n "$source" ]; then
    cmake -S "$source/vendor/llama.cpp" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON -DLLAMA_CURL=OFF \
        -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCH:-90a-real}" >"$t/cmake" 2>&1 || { tail -n 20 "$t/cmake"; exit 1; }
    cmake --build "$build" --target llama-bench -j "$(nproc)" >"$t/make" 2>&1 || { tail -n 20 "$t/make"; exit 1; }
    bench=$build/bin/llama-bench
fi
if [ -n "$bench" ]; then
    "$bench" -m "$file" -ngl 99 -fa 1 -r "$runs" -p "$(echo "$prefills" | tr ' ' ',')" -n "$steps" -o jsonl >"$t/llama" 2>"$t/err" ||
        { cat "$t/err"; exit 1; }
else
    echo "SKIPPED: llama.cpp: no source archive was given, and LLAMA_BENCH is not set"
    : >"$t/llama"
fi

# number KEY FILE: the first value of a key in one JSON object a line
number() { sed -n "s/.*\"$1\": *\"*\([0-9.]*\).*/\1/p" "$2" | head -n 1; }
# theirs PROMPT GENERATED: their tokens a second in that test
theirs() {
    grep "\"n_prompt\": *$1[,}]" "$t/llama" | grep "\"n_gen\": *$2[,}]" >"$t/row" || true
    number avg_ts "$t/row"
}
# row NAME THEIRS PATH OURS NOTE
row() {
    awk -v name="$1" -v theirs="${2:-0}" -v path="$3" -v ours="$4" -v note="$5" 'BEGIN {
        printf "%-22s %12s  %-16s %12.1f  %8s  %s\n", name, (theirs > 0) ? sprintf("%.1f", theirs) : "-", path, ours,
            (theirs > 0) ? sprintf("%.2f", ours / theirs) : "-", note }'
}

printf '%-22s %12s  %-16s %12s  %8s  %s\n' "tok/s" "llama.cpp" "path" "ours" "ratio" ""
for path in $(echo "$paths" | tr ',' ' '); do
    for n in $prefills; do
        "$program" bench "$file" --paths "$path" --prefill "$n" --steps 0 --runs "$runs" --json >"$t/ours"
        row "prefill $n" "$(theirs "$n" 0)" "$path" "$(number prefill_tok_s "$t/ours")" ""
    done
    "$program" bench "$file" --paths "$path" --prefill 1 --steps "$steps" --runs "$runs" --taps --json >"$t/ours"
    decode=$(number decode_tok_s "$t/ours") share=$(number decode_gb_s "$t/ours") ceiling=$(number read_gb_s "$t/ours")
    row "decode $steps" "$(theirs 0 "$steps")" "$path" "$decode" \
        "$(awk -v a="$share" -v b="$ceiling" 'BEGIN { printf "%.0f of %.0f GB/s, %.0f %% of the ceiling", a, b, 100 * a / b }')"
    for kind in taps digests; do
        watched=$(number decode_${kind}_tok_s "$t/ours")
        [ "${watched%.*}" -eq 0 ] || row "decode, all $kind" "" "$path" "$watched" \
            "$(awk -v a="$watched" -v b="$decode" 'BEGIN { printf "%.1f %% slower", 100 * (1 - a / b) }')"
    done
done
