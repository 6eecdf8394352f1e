#!/bin/sh
# ci/check_gpu.sh FOLDER: the tests that need an NVIDIA card, from a folder of built programs (parity, test_cuda_*), run
# where the repository's root is the current folder. It needs no compiler, so that the folder can be carried to the
# machine that has the card. SANITIZE=1: the built-in model under each tool of compute-sanitizer as well.
# Exit 0 all passed, 1 something failed, 77 no card (with the driver's reason).
set -u
bin=${1:?usage: ci/check_gpu.sh FOLDER}
PARITY=$(cd "$bin" && pwd)/parity
export PARITY
paths=$("$PARITY" paths) || exit 3
if ! echo "$paths" | sed -n '/^q4k-cuda /{n;p;}' | grep -q 'runs here'; then
    echo "SKIPPED: check-gpu:$(echo "$paths" | sed -n '/^q4k-cuda /{n;p;}')"
    exit 77
fi
bad=0
sh ci/check.sh "$bin"/test_cuda_* ci/gpu_*.sh || bad=1
if [ "${SANITIZE:-0}" = 1 ]; then
    sh ci/sanitize_gpu.sh "$PARITY" || bad=1
fi
exit $bad
