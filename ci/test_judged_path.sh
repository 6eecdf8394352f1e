#!/bin/sh
# ci/test_judged_path.sh: `parity generate` computes what `parity run` judges. For every path, schedule and form of the
# prompt: the ids that both feed are the same, and at the last prompt position and the decode step after it the id
# made is the judged argmax and the logits have the judged hash. Then generate is made to compute something else, and
# the same comparison must fail. PARITY: the program. Exit 0 all held, 1 one did not.
set -u
cd "$(dirname "$0")/.." || exit 1
parity=${PARITY:-$PWD/build/release/bin/parity}
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
n_run=0 n_failed=0

# Two layers: the run judges every op, and this many runs of the whole model would take minutes.
"$parity" fixture make -o "$t/whole.gguf" 2>"$t/err"
if ! "$parity" fixture cut "$t/whole.gguf" --layers 0,5 -o "$t/m.gguf" >"$t/out" 2>>"$t/err"; then
    echo "FAILED: no model could be made"
    cat "$t/err"
    exit 1
fi

# "prompt ids | id hash | id hash" of generate's JSON
made() {
    awk '/"prompt_ids":/ {gsub(/[^0-9,]/, ""); prompt = $0}
        /"ids":/ {gsub(/[^0-9,]/, ""); split($0, id, ",")}
        /"logits_hashes":/ {gsub(/.*\[|[]" ,]+$/, ""); gsub(/[" ]/, ""); split($0, hash, ",")}
        END {sub(/,$/, "", prompt); print prompt " | " id[1] " " hash[1] " | " id[2] " " hash[2]}' "$1"
}
# The same of the run's JSON: its ids are the prompt and the one decode step, its rows the positions.
judged() {
    awk '/"token_ids":|"ids":/ && !seen {seen = 1; gsub(/[^0-9,]/, ""); sub(/,$/, ""); n = split($0, all, ",")}
        /"pos":/ {gsub(/[^0-9]/, ""); pos = $0}
        /"logits_hash":/ && pos != "" && !(pos in hash) {gsub(/.*:[ \t]*"|[",]+$/, ""); hash[pos] = $0}
        /"top_got":/ {gsub(/[^0-9-]/, ""); top[pos] = $0}
        END {
            for (i = 1; i < n; i++) prompt = prompt (i > 1 ? "," : "") all[i]
            print prompt " | " top[n - 2] " " hash[n - 2] " | " top[n - 1] " " hash[n - 1]
        }' "$1"
}

# compare PATH SCHEDULE OPTIONS: sets $same to yes or no
compare() {
    # shellcheck disable=SC2086 # $3 is several words
    "$parity" generate "$t/m.gguf" -p "hi there" -n 2 --threads 1 --json --path "$1" --schedule "$2" $3 >"$t/made.json" 2>"$t/err"
    code=$?
    made "$t/made.json" >"$t/made"
    same=no
    [ $code -eq 0 ] && grep -q '^[0-9].* | [0-9][0-9]* 0x[0-9a-f]\{16\} | [0-9][0-9]* 0x[0-9a-f]\{16\}$' "$t/made" &&
        cmp -s "$t/made" "$t/judged" && same=yes
}

for form in "" --chat; do
    for path in q4k-cpu f32 f64; do
        case $path in q4k-cpu) others="--head=f32 --kv=f32" ;; *) others=--act=as:q4k-cpu ;; esac
        for schedule in nocache step prefill; do
            name="$path, $schedule, ${form:-raw}"
            # The verdict is not this test's subject, an error is.
            # shellcheck disable=SC2086
            "$parity" run "$t/m.gguf" -p "hi there" -n 1 --quick --threads 1 --json --paths $path --schedule $schedule $form \
                >"$t/judged.json" 2>"$t/err"
            code=$?
            judged "$t/judged.json" >"$t/judged"
            n_run=$((n_run + 1))
            compare $path $schedule "$form"
            if [ $code -gt 1 ] || [ $same = no ]; then
                echo "FAILED  $name: run exit $code"
                sed 's/^/  judged /' "$t/judged"
                sed 's/^/  made   /' "$t/made" "$t/err"
                n_failed=$((n_failed + 1))
                continue
            fi
            for other in $others; do
                n_run=$((n_run + 1))
                compare $path $schedule "$form $other"
                [ $same = no ] || { echo "FAILED  $name: generate with $other passes for the judged path"; n_failed=$((n_failed + 1)); }
            done
            echo "ok      $name: $(sed 's/^[^|]*| //' "$t/judged"); told from generate with $others"
        done
    done
done
echo "test_judged_path: $n_run comparisons, $n_failed failed"
[ $n_failed -eq 0 ]
