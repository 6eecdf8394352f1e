#!/bin/sh
# ci/test_adapters.sh: what ci/adapters write, parity reads. The C header alone under a strict compiler, its capture by
# `parity diff`; llama.cpp's, where llama-cpp-python is installed, beside our own path's of the same model and ids.
set -u
parity=${PARITY:-build/release/bin/parity}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

cat >"$dir/engine.c" <<'EOF'
#include "capture.h"
int main(int argc, char **argv) {
    float q[2][4] = {{0, 1, 2, 3}, {4, 5, 6, 7}}, logits[3] = {1, 2, 3};
    unsigned short k[2][1][4] = {{{0, 0x3c00, 0, 0}}, {{0, 0, 0x4000, 0}}};
    long long q_shape[2] = {2, 4}, k_shape[3] = {2, 1, 4}, logits_shape[2] = {1, 3};
    struct capture c;
    if (argc > 2)
        q[1][2] = 9;
    capture_begin(&c);
    capture_fact(&c, "model_sha256", "12");
    capture_fact(&c, "token_ids", "7,8");
    capture_fact(&c, "n_prompt", "2");
    capture_fact(&c, "path", "a \"quoted\"\n\\name");
    capture_fact(&c, "tap:Qcur", "op=Qcur dtype=F32 ne0=4");
    capture_fact(&c, "tap:K_cache", "op=K_cache dtype=F16 ne0=4 ne1=1");
    capture_fact(&c, "tap:result_output", "op=result_output dtype=F32 ne0=3");
    capture_tensor(&c, "Qcur", 0, 0, 2, "F32", q_shape, 2, q);
    capture_tensor(&c, "K_cache", 0, 0, 2, "F16", k_shape, 3, k);
    capture_tensor(&c, "result_output", -1, 1, 2, "F32", logits_shape, 2, logits);
    return capture_end(&c, argv[1]) != 0;
}
EOF
${CC:-gcc} -std=c99 -pedantic -Wall -Wextra -Werror -I"$here/adapters" "$dir/engine.c" -o "$dir/engine" || exit 1
"$dir/engine" "$dir/a" && "$dir/engine" "$dir/b" && "$dir/engine" "$dir/c" other || { echo "FAILED: no capture"; exit 1; }
"$dir/engine" "$dir/none/a" && { echo "FAILED: a capture that could not be written was called whole"; failed=1; }

# expect CODE TEXT FILE FILE: parity diff's exit code and a text in what it says
expect() {
    "$parity" diff --exact "$3" "$4" >"$dir/out" 2>&1
    got=$?
    if [ $got -ne "$1" ] || ! grep -qF -- "$2" "$dir/out"; then
        echo "FAILED: diff: exit $got, expected $1 and \"$2\" in:"
        cat "$dir/out"
        failed=1
    fi
}
expect 0 '3 taps the same' "$dir/a" "$dir/b"
expect 0 'path a "quoted"\n\name' "$dir/a" "$dir/b"
expect 1 'Qcur-0 at position 1, value 2: a 6 (0x1.8p+2), b 9 (0x1.2p+3)' "$dir/a" "$dir/c"
head -c $(($(wc -c <"$dir/a") - 1)) "$dir/a" >"$dir/cut"
expect 4 'cut' "$dir/a" "$dir/cut"

"$parity" fixture make -o "$dir/tiny.gguf" >/dev/null 2>&1 || { echo "FAILED: no model could be made"; exit 1; }
for options in "" "--ubatch 3 --flash-attn off --kv f32"; do
    "$python" "$here/check_adapter.py" "$parity" "$dir/tiny.gguf" 1,2,3,4,5,6,7,8 9,10 $options
    case $? in
    0) ;;
    3) break ;;
    *) failed=1 ;;
    esac
done
exit $failed
