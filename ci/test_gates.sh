#!/bin/sh
# ci/test_gates.sh: the program as a CI gate: green on a sound path (exit 0, verdict.json says HELD), red on a planted
# fault (exit 1, verdict.json names the op).
set -u
parity=${PARITY:-build/release/bin/parity}
dir=$(mktemp -d) || exit 3
trap 'rm -rf "$dir"' EXIT
"$parity" fixture make -o "$dir/tiny.gguf" >/dev/null || exit 1
"$parity" run "$dir/tiny.gguf" --quick -p 'int main(void)' --report "$dir/green" >/dev/null
code=$?
if [ $code -ne 0 ] || ! grep -q '"HELD"' "$dir/green/verdict.json"; then
    echo "gate: a sound path gave exit $code, expected 0:"
    cat "$dir/green/verdict.json"
    exit 1
fi
echo "gate green: exit 0, HELD"
"$parity" run "$dir/tiny.gguf" --quick -p 'int main(void)' --fault q4k-min-dropped@ffn_gate:1 --report "$dir/red" >/dev/null
code=$?
if [ $code -ne 1 ] || ! grep -q 'ffn_gate of layer 1' "$dir/red/verdict.json"; then
    echo "gate: a planted fault gave exit $code, expected 1 and ffn_gate of layer 1 named:"
    cat "$dir/red/verdict.json"
    exit 1
fi
echo "gate red: exit 1, DIVERGED at ffn_gate of layer 1"
