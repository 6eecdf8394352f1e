#!/bin/sh
# ci/test_contract.sh: contracts as a person runs them: list, validate and run, and `parity run` gated by one.
set -u
parity=${PARITY:-build/release/bin/parity}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

# expect CODE WORD COMMAND...: exit code, and a word on stdout or stderr
expect() {
    code=$1 word=$2
    shift 2
    "$@" >"$dir/out" 2>&1
    got=$?
    if [ $got -ne "$code" ] || ! grep -q -- "$word" "$dir/out"; then
        echo "FAILED: $*: exit $got, expected $code and \"$word\" in:"
        sed -n 1,8p "$dir/out"
        failed=1
    fi
}

# contract NAME CHECK MEASURE: a small one
contract() {
    cat >"$dir/$1.json" <<END
{"metadata": {"kind": "pattern", "version": "1.0.0", "description": "d", "references": ["r"]},
 "equations": {"e": {"formula": "f"}},
 "falsification_tests": [
  {"id": "FALSIFY-TEST-001", "rule": "r", "prediction": "p", "test": "t", "if_fails": "it broke",
   "check": $2, "measure": $3}]}
END
}

"$parity" fixture make -o "$dir/m.gguf" >/dev/null 2>&1 || { echo "FAILED: no model could be made"; exit 1; }
contract held '{"figure": "cand.accused", "is": "=", "value": 0}' '{"path": "q4k-cpu"}'
contract broken '{"figure": "positions.prompt", "is": ">", "value": 100}' '{"path": "q4k-cpu"}'
contract elsewhere '{"figure": "cand.accused", "is": "=", "value": 0}' '{"path": "q4k-cuda"}'
contract unknown '{"figure": "no.such.figure", "is": "=", "value": 0}' '{}'

expect 0 FALSIFY-MODEL-1-SHIP-CPU-001 "$parity" contract list
expect 0 FALSIFY-TEST-001 "$parity" contract list "$dir/held.json"
expect 0 valid "$parity" contract validate contracts/*.json
expect 4 "held.json:4: .*FALSIFY-TEST-001.* seen before" "$parity" contract validate "$dir/broken.json" "$dir/held.json"
expect 4 "models.json:2: unknown key" "$parity" contract validate "$dir/held.json" fixtures/models.json
expect 4 "no file" "$parity" contract validate "$dir/none.json"
expect 2 "missing" "$parity" contract validate
expect 2 "missing" "$parity" contract run
expect 2 "list, validate, figures or run" "$parity" contract lists

run="$parity run $dir/m.gguf --tokens 1,2,3,4,5 --decode 1 --quick"
expect 0 "HELD.*FALSIFY-TEST-001" $run --contract "$dir/held.json"
expect 1 "it broke" $run --contract "$dir/broken.json"
expect 1 "a contract is broken" $run --contract "$dir/broken.json"
expect 3 "expected q4k-cuda" $run --contract "$dir/elsewhere.json"
expect 4 "no figure \"no.such.figure\", the nearest is" $run --contract "$dir/unknown.json"
expect 4 "no file" $run --contract "$dir/none*.json"
expect 1 "DIVERGED.*FALSIFY-TEST-001" $run --contract "$dir/held.json" --fault q4k-min-dropped
expect 1 "DIVERGED.*FALSIFY-RUN-TRACE-004" $run --contract "contracts/*.json" --fault rope-pairing
expect 1 "DIVERGED.*FALSIFY-RUN-TRACE-003" $run --contract "contracts/*.json" --fault kv-row-stale
expect 1 "DIVERGED.*FALSIFY-RUN-TRACE-005" $run --contract "contracts/*.json" --fault eps-other-model

expect 3 "path q4k-cuda" "$parity" contract run "$dir/elsewhere.json" "$dir/m.gguf" --report "$dir/r"
grep -q '<testcase classname="elsewhere" name="FALSIFY-TEST-001">' "$dir/r/junit.xml" || {
    echo "FAILED: junit.xml has no case of the contract"
    failed=1
}
expect 4 "not a GGUF file" "$parity" contract run "$dir/held.json" fixtures/models.json --report "$dir/r"
[ ! -e "$dir/r/junit.xml" ] || { echo "FAILED: an old junit.xml outlived a refused run"; failed=1; }
exit $failed
