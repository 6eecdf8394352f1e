#!/bin/sh
# ci/test_memory.sh: a judged run's peak memory is at most the model's file, the KV cache and 1 GiB: resident memory is
# measured, and the run is made under a limit of that size on what it allocates (the file's own mapping is read-only:
# the system can take its pages back). With less than it needs it ends with exit 4 and a message that says what there
# was no memory for. The KV cache of the few positions run here is counted as nothing. PARITY: the program.
# CHECK_LONG=1: the largest registered model in the cache, else the small one.
# Exit 0 held, 1 not, 77 skipped (a line "SKIPPED: why").
# shellcheck disable=SC3045 # ulimit -v and -d are in dash, bash, busybox and ksh
set -u
cd "$(dirname "$0")/.." || exit 1
parity=${PARITY:-$PWD/build/release/bin/parity}
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
n_failed=0

if ! (ulimit -v 4000000 && "$parity" --help) >"$t/out" 2>"$t/err"; then
    echo "SKIPPED: this build does not start in an address space of 4 GB (a sanitizer's needs more)"
    exit 77
fi
wanted="smollm2-135m"
[ -n "${CHECK_LONG:-}" ] && wanted="qwen2.5-coder-1.5b smollm2-135m"
model=
for name in $wanted; do
    [ -n "$model" ] || model=$("$parity" fixture path "$name" 2>/dev/null)
done
note=
if [ -z "$model" ]; then
    note="no registered model is in the cache: only the built-in one of 3 MB was run"
    model=$t/tiny.gguf
    "$parity" fixture make -o "$model" 2>"$t/err" || { echo "FAILED: no model could be made"; exit 1; }
fi
model_kb=$(($(wc -c <"$model") / 1024))
limit_kb=$((model_kb + 1048576))

# run DATA_KB SPACE_KB: with so much to allocate, in so large an address space; output in $t/out and $t/err
run() {
    (ulimit -d "$1" && ulimit -v "$2" && exec "$parity" run "$model" --tokens 1,2,3,4 -n 0 --quick --threads 2 --json) >"$t/out" 2>"$t/err"
}

# The verdict is not this test's subject: 0 and 1 are whole runs.
run $limit_kb $((limit_kb + model_kb))
code=$?
peak_mb=$(grep -A1 '"peak RSS"' "$t/out" | sed -n 's/.*"\([0-9][0-9]*\) MB.*/\1/p')
if [ $code -gt 1 ] || [ -z "$peak_mb" ]; then
    echo "FAILED  $model of $model_kb kB under a limit of $limit_kb kB: exit $code: $(cat "$t/err")"
    exit 1
fi
if [ $((peak_mb * 1024)) -gt $limit_kb ]; then
    echo "FAILED  peak RSS $peak_mb MB, expected at most $((limit_kb / 1024)) MB"
    n_failed=1
fi
echo "ok      $(basename "$model"): peak RSS $peak_mb MB, file $((model_kb / 1024)) MB; ran with $((limit_kb / 1024)) MB to allocate"

# The report's own figure against what the kernel says of the finished process.
if command -v python3 >/dev/null 2>&1; then
    python3 -c 'import resource, subprocess, sys
subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)' \
        "$parity" run "$model" --tokens 1,2,3,4 -n 0 --quick --threads 2 --json >"$t/seen" 2>"$t/err"
    seen_mb=$(cat "$t/seen")
    if [ "$((seen_mb * 1024))" -gt $limit_kb ] || [ "$((seen_mb * 10))" -gt "$((peak_mb * 11))" ]; then
        echo "FAILED  the kernel saw $seen_mb MB, the report says $peak_mb MB, allowed are $((limit_kb / 1024)) MB"
        n_failed=1
    else
        echo "ok      the kernel saw $seen_mb MB"
    fi
fi

# Of the small model the libraries and stacks are the most, so that a part of its peak says nothing.
[ -n "$note" ] && percents= || percents="25 50 75"
for percent in $percents; do
    run $limit_kb $((peak_mb * 1024 * percent / 100))
    code=$?
    if [ $code -ne 4 ] || [ -s "$t/out" ] || ! grep -qE 'parity: .*(no memory|annot allocate memory|could not start)' "$t/err"; then
        echo "FAILED  in an address space of $percent % of that: exit $code, expected 4 and what there was no memory for: $(head -c 300 "$t/err")"
        n_failed=1
    else
        echo "ok      in an address space of $percent % of that, exit 4: $(cat "$t/err")"
    fi
done
[ $n_failed -eq 0 ] || exit 1
[ -z "$note" ] || { echo "SKIPPED: $note"; exit 77; }
