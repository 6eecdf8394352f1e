#!/bin/sh
# ci/test_selftest.sh: the self-test on the built-in model: every figure it asks for is reached, its JSON says so, and it
# can fail. CHECK_LONG: more places a fault, and 10^9 clean elements. PARITY: the program.
set -u
cd "$(dirname "$0")/.." || exit 1
parity=${PARITY:-$PWD/build/release/bin/parity}
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
failed=0
fail() {
    echo "FAILED: $1"
    failed=$((failed + 1))
}

if [ -n "${CHECK_LONG:-}" ]; then
    set -- --seeds 8
else
    set -- --quick
fi
"$parity" selftest "$@" -o "$t/all.json" >"$t/out" 2>"$t/err" || {
    fail "selftest $*: exit $?"
    cat "$t/out" "$t/err"
}
grep '^figure' -A 30 "$t/out"
grep -q '"schema":	*"parity-selftest-v1"' "$t/all.json" || fail "no JSON, or another schema"
grep -q '"exit":	*0' "$t/all.json" || fail "the JSON does not say exit 0"

# Nothing to measure is not a pass.
"$parity" selftest --faults no-such-fault --prompts 0 --weights 0 >"$t/out" 2>"$t/err"
code=$?
[ $code -eq 3 ] || fail "nothing measured: exit $code, expected 3"
# One fault by name.
"$parity" selftest --faults kv-row-stale --quick --prompts 0 --weights 0 >"$t/out" 2>"$t/err" || fail "one fault: exit $?, expected 0"
grep -q '^kv-row-stale' "$t/out" || fail "one fault: not in the table"
[ "$(sed -n '/^fault  /,/^set:/p' "$t/out" | wc -l)" -eq 3 ] || fail "--faults let others through"
echo "test_selftest: $failed failed"
[ $failed -eq 0 ]
