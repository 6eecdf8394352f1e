#!/bin/sh
# ci/sanitize_gpu.sh PARITY: the built-in model on every GPU path under each tool of compute-sanitizer, JOBS of them at a
# time (default 8). One line a run; exit 1 when a tool found something, 77 when it is not installed.
set -u
parity=${1:?usage: ci/sanitize_gpu.sh PARITY}
tool=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ -x "$tool" ] || {
    echo "SKIPPED: sanitize_gpu: compute-sanitizer is not installed"
    exit 77
}
dir=$(mktemp -d) || exit 3
trap 'rm -rf "$dir"' EXIT
"$parity" fixture make -o "$dir/tiny.gguf" >/dev/null 2>&1 || exit 3
cat >"$dir/one.sh" <<'END'
tool=$1 parity=$2 dir=$3 path=$4 check=$5
if timeout 150 "$tool" --tool "$check" --error-exitcode 99 "$parity" generate "$dir/tiny.gguf" --path "$path" \
    -t 1,2,3,4,5,6,7,8,9,10,11 -n 4 >"$dir/$path.$check" 2>&1; then
    echo "$path $check: clean"
else
    echo "$path $check: FAILED (exit $?)"
    tail -n 20 "$dir/$path.$check"
fi
END
for path in ${PATHS:-q4k-cuda q4k-cuda-graph f32-cuda bf16-cuda fp8-cuda}; do
    for check in memcheck racecheck initcheck synccheck; do
        echo "$path $check"
    done
done | xargs -P "${JOBS:-8}" -n 2 sh "$dir/one.sh" "$tool" "$parity" "$dir" >"$dir/all"
sort "$dir/all"
! grep -q ': FAILED' "$dir/all"
