#!/bin/sh
# ci/test_faults.sh [MODEL...]: each planted bug on real models through the program: exit 1, the guilty op named, the expected
# hypothesis SUPPORTED and no other; and exit 0 without a fault. Minutes each, so only where CHECK_LONG is set (`make
# check-long`) or models are named; a model that is not in the cache is skipped by name.
set -u
parity=${PARITY:-build/release/bin/parity}
if [ $# -eq 0 ]; then
    if [ -z "${CHECK_LONG:-}" ]; then
        echo "SKIPPED: planted faults on real models: make check-long runs them"
        exit 77
    fi
    set -- smollm2-135m qwen2.5-coder-1.5b
fi
dir=$(mktemp -d) || exit 3
trap 'rm -rf "$dir"' EXIT
failed=0 ran=0

# expect MODEL FAULT OPTIONS EXIT GUILTY HYPOTHESIS
expect() {
    start=$(date +%s)
    # shellcheck disable=SC2086
    "$parity" run "$1" ${2:+--fault "$2"} $3 >"$dir/out" 2>"$dir/err"
    code=$?
    guilty=$(sed -n 's/^guilty op  *//p' "$dir/out")
    supported=$(sed -n 's/^\(H[0-9]\)  SUPPORTED.*/\1/p' "$dir/out" | tr '\n' ' ')
    ran=$((ran + 1))
    case "$guilty" in "$5"*) named=yes ;; *) named=no ;; esac
    result=ok
    if [ $code -ne "$4" ] || [ $named = no ] || [ "$supported" != "$6 " ]; then
        result=FAILED
        failed=$((failed + 1))
    fi
    printf '%-6s %-20s %-26s exit %d  guilty: %-40s supported: %s (%d s)\n' "$result" "$1" "${2:-no fault}" $code "$guilty" \
        "$supported" $(($(date +%s) - start))
    [ $result = ok ] || { head -n 12 "$dir/out"; cat "$dir/err"; }
}

for model in "$@"; do
    if ! "$parity" fixture path "$model" >/dev/null 2>&1; then
        echo "SKIPPED: $model is not in the cache (make model NAME=$model)"
        continue
    fi
    expect "$model" "" "" 0 "none" H0
    expect "$model" f32-head-transposed "--head f32" 1 "result_output" H4
    case "$model" in
    smollm2*) ;; # its weights are Q4_1 and Q8_0: no Q4_K or Q6_K to break
    *)
        expect "$model" q4k-min-dropped@ffn_gate:5 "" 1 "ffn_gate of layer 5" H1
        expect "$model" q6k-as-q4k "" 1 "ffn_out of layer" H4
        ;;
    esac
    expect "$model" rope-pairing@Qcur_rope:3 "" 1 "Qcur_rope of layer 3" H3
    expect "$model" rope-position@Kcur_rope:2 "" 1 "Kcur_rope of layer 2" H3
    expect "$model" kv-row-stale@K_cache:4 "" 1 "K_cache of layer 4" H2
    expect "$model" gqa-modulo "" 1 "kqv_out of layer 0" H5
    expect "$model" eps-other-model "" 1 "attn_norm of layer 0" H5
done
echo "$ran runs, $failed failed"
[ $ran -gt 0 ] || exit 77
[ $failed -eq 0 ]
