#!/bin/sh
# ci/test_capture.sh: parity trace and parity diff as a person runs them: verdicts, exit codes, and captures that the
# safetensors package opens. Exit 77: all passed but the package's part, which was skipped.
set -u
parity=${PARITY:-build/release/bin/parity}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
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
        sed -n 1,6p "$dir/out"
        failed=1
    fi
}

"$parity" fixture make -o "$dir/m.gguf" >/dev/null 2>&1 || { echo "FAILED: no model could be made"; exit 1; }
trace() { expect 0 HELD "$parity" trace "$dir/m.gguf" --threads 1 "$@"; }
trace --path q4k-cpu --tokens 1,2,3,4,5 --continue 6,7 -o "$dir/prefill.parity"
trace --path q4k-cpu --tokens 1,2,3,4,5 --continue 6,7 -o "$dir/step.parity" --schedule step
trace --path q4k-cpu --tokens 1,2,3,4,5 --continue 6,7 -o "$dir/f32kv.parity" --kv f32
trace --path f32 --tokens 1,2,3,4,5 --continue 6,7 -o "$dir/f32.parity"
trace --path q4k-cpu --tokens 1,2,3,4,9 -n 2 -o "$dir/other.parity" --layers 0..0 --tensor-filter '^Qcur'

diff="$parity diff"
expect 0 HELD $diff "$dir/prefill.parity" "$dir/step.parity" --exact
expect 3 "nothing judged" $diff "$dir/f32.parity" "$dir/prefill.parity"
expect 1 DIVERGED $diff "$dir/f32.parity" "$dir/prefill.parity" --exact
expect 1 "K_cache-0" $diff "$dir/f32kv.parity" "$dir/prefill.parity" --exact
expect 0 HELD $diff "$dir/f32kv.parity" "$dir/prefill.parity" --exact --tensor-filter '^Kcur-0$'
expect 4 "token_ids differs" $diff "$dir/prefill.parity" "$dir/other.parity"
expect 3 "no value was compared" $diff "$dir/prefill.parity" "$dir/step.parity" --tensor-filter nothing
expect 0 '"verdict":.*"HELD"' $diff "$dir/prefill.parity" "$dir/step.parity" --json
expect 4 "cannot be opened" $diff "$dir/prefill.parity" "$dir/none.parity"
expect 2 "two captures" $diff "$dir/prefill.parity"
expect 2 "no such option" $diff --wrong
expect 2 "regular expression" $diff "$dir/prefill.parity" "$dir/step.parity" --tensor-filter 'a['
head -c 5000 "$dir/prefill.parity" >"$dir/cut.parity"
expect 4 "cut off" $diff "$dir/prefill.parity" "$dir/cut.parity"
expect 2 "no path" "$parity" trace "$dir/m.gguf" --path none -o "$dir/x" --tokens 1
expect 2 "missing" "$parity" trace "$dir/m.gguf" --path f32 --tokens 1
expect 2 "layers" "$parity" trace "$dir/m.gguf" --path f32 -o "$dir/x" --tokens 1 --layers 3..1
expect 4 "$dir/none/x" "$parity" trace "$dir/m.gguf" --path f32 -o "$dir/none/x" --tokens 1
expect 3 UNMEASURED "$parity" trace "$dir/m.gguf" --path f32 -o "$dir/empty" --tokens 1 --tensor-filter nothing
[ -e "$dir/x" ] && { echo "FAILED: a refused trace left a file"; failed=1; }
[ $failed -eq 0 ] || exit 1

"$python" "$here/check_capture.py" "$dir/prefill.parity" "$dir/step.parity" "$dir/f32.parity"
case $? in
0) exit 0 ;;
3) exit 77 ;;
*) exit 1 ;;
esac
