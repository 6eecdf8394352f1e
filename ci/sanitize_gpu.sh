#!/bin/sh
# ci/sanitize_gpu.sh PARITY: the built-in model on every GPU path under each tool of compute-sanitizer. One line a run;
# exit 1 when a tool found something, 77 when it is not installed.
set -u
parity=${1:?usage: ci/sanitize_gpu.sh PARITY}
tool=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ -x "$tool" ] || {
    echo "SKIPPED: sanitize_gpu: compute-sanitizer is not installed"
    exit 77
}
dir=$(mktemp -d) || exit 3
trap 'rm -rf "$dir"' EXIT
"$parity" fixture make -o "$dir/tiny.gguf" >/dev/null || exit 3
bad=0
for path in ${PATHS:-q4k-cuda q4k-cuda-graph f32-cuda bf16-cuda fp8-cuda}; do
    for check in memcheck racecheck initcheck synccheck; do
        if "$tool" --tool "$check" --error-exitcode 99 "$parity" generate "$dir/tiny.gguf" --path "$path" -p "One two three" -n 6 \
            >"$dir/out" 2>&1; then
            echo "$path $check: clean ($(grep -c 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards' "$dir/out") summary)"
        else
            echo "$path $check: FAILED"
            tail -n 30 "$dir/out"
            bad=1
        fi
    done
done
exit $bad
