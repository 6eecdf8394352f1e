#!/bin/sh
# ci/bench.sh PROGRAM MODEL [PYTHON]: our speed beside llama.cpp's on the same file, in turn, in one run. llama.cpp is the
# llama-cpp-python package of PYTHON (default python3); without it our own figures are printed and the rest is said to
# be skipped. Rounds alternate, ratios are taken round by round and their median is quoted.
set -eu
program=$1 model=$2 python=${3:-python3}
path=$("$program" fixture path "$model")
threads=$(nproc)
if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
    echo "SKIPPED: llama.cpp: $python has no llama_cpp (pip install llama-cpp-python==0.3.36; make bench PYTHON=...)"
    exec "$program" bench "$path" --paths q4k-cpu,f32 --threads "$threads"
fi
exec "$python" ci/bench_beside.py "$program" "$path" "$threads"
