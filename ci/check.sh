#!/bin/sh
# ci/check.sh TEST...: runs the test programs one after the other and adds up what they say. A line "SKIPPED: what and why"
# is a check that did not run (and is not among a program's checks): it is counted as skipped, never as passed. A program
# that ran no check and skipped none has failed. "not-built:NAME" is a test that this build left out: skipped, by name.
set -u
passed=0 failed=0 skipped=0 bad_programs=
out=$(mktemp) || exit 3
trap 'rm -f "$out"' EXIT
for test in "$@"; do
    case "$test" in not-built:*)
        echo "SKIPPED: ${test#not-built:}: built without the CUDA toolkit"
        skipped=$((skipped + 1))
        continue
        ;;
    esac
    name=$(basename "$test")
    start=$(date +%s)
    case "$name" in
    *.sh) sh "$test" >"$out" 2>&1 ;;
    *) "$test" >"$out" 2>&1 ;;
    esac
    code=$?
    # Check's own summary: "100%: Checks: 12, Failures: 0, Errors: 0", one line a suite runner.
    counts=$(awk -F'[:,] *' '/^[0-9]+%: Checks: /{c += $3; f += $5 + $7} END {print c + 0, f + 0}' "$out")
    checks=${counts% *} bad=${counts#* }
    skips=$(grep -c '^SKIPPED: ' "$out")
    case "$name" in *.sh)
        checks=1 bad=0
        [ $code -eq 0 ] || bad=1
        [ $code -eq 77 ] && { checks=0 bad=0 code=0; }
        ;;
    esac
    [ "$code" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    [ "$checks" -eq 0 ] && [ "$bad" -eq 0 ] && [ "$skips" -eq 0 ] && bad=1
    ran=$checks
    [ "$ran" -lt "$bad" ] && ran=$bad
    passed=$((passed + ran - bad)) failed=$((failed + bad)) skipped=$((skipped + skips))
    printf '%-28s %5d passed %3d failed %3d skipped  %4d s\n' "$name" $((ran - bad)) "$bad" "$skips" \
        $(($(date +%s) - start))
    grep '^SKIPPED: ' "$out"
    if [ "$bad" -ne 0 ]; then
        bad_programs="$bad_programs $name"
        tail -n 40 "$out"
    fi
done
[ -n "$bad_programs" ] && echo "failed in:$bad_programs"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
