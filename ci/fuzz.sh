#!/bin/sh
# ci/fuzz.sh SECONDS BIN_DIR: every fuzz target for so many seconds over its corpus, under ASan and UBSan. The corpus of
# fuzz_NAME is fixtures/fuzz/NAME/ (and fixtures/bad/ for GGUF).
set -eu
seconds=$1 bin=$2
n=0
for target in "$bin"/fuzz_*; do
    name=$(basename "$target")
    corpus="fixtures/fuzz/${name#fuzz_}"
    [ -d "$corpus" ] || { echo "fuzz: $name has no corpus $corpus" >&2; exit 1; }
    echo "== $name"
    extra=""
    [ "$name" = fuzz_gguf ] && extra=fixtures/bad
    "$target" --seconds "$seconds" --seed 1 "$corpus" $extra
    n=$((n + 1))
done
[ $n -gt 0 ] || { echo "fuzz: no target was built" >&2; exit 1; }
echo "fuzz: $n targets, $seconds s each, no finding"
