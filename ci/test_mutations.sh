#!/bin/sh
# ci/test_mutations.sh [FILE]: the spec is wrong in one line at a time (ci/spec_mutations.txt, or FILE in its form), and its
# tests must see it each time. Works on a copy of the tree with its build, so only what a mutation touches is compiled
# again. Minutes, so without CHECK_LONG (`make check-long`) or a FILE it is only looked at whether every mutation still
# applies. Exit 0: every one was killed, or applies.
set -u
cd "$(dirname "$0")/.." || exit 1
only_apply=
[ $# -eq 0 ] && [ -z "${CHECK_LONG:-}" ] && only_apply=yes
list=${1:-ci/spec_mutations.txt}
case $list in /*) ;; *) list=$PWD/$list ;; esac
tests="test_spec test_spec_edge test_spec_model test_judge"
for test in second_look declared; do
    [ -f harness/test/test_$test.c ] && tests="$tests test_$test"
done
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

build() { # TEST: everything it needs; a mutant may have variables that nothing uses any more
    make -s "build/release/bin/$1" EXTRA_CFLAGS="-O1 -Wno-error" >"$tmp/log" 2>&1
}
passes() { # a test that hangs has failed
    CK_DEFAULT_TIMEOUT=60 timeout 300 "build/release/bin/$1" >"$tmp/log" 2>&1
}
# Before the first mutation and after the last: what is red for another reason has killed nothing.
expect_green() {
    for test in $tests; do
        build "$test" && passes "$test" && continue
        tail -n 20 "$tmp/log"
        echo "FAILED  $test does not pass without any mutation"
        exit 1
    done
}
if [ -z "$only_apply" ]; then
    mkdir -p "$tmp/tree/build" || exit 1
    cp -pR Makefile ci contracts engine fixtures harness "$tmp/tree" || exit 1
    [ -d build/release ] && cp -pR build/release "$tmp/tree/build"
    cd "$tmp/tree" || exit 1
    expect_green
fi

# Replaces OLD by NEW in line number WHICH of the OF lines that hold it; fails when there are not as many.
mutate() { # FILE WHICH OF OLD NEW
    WHICH=$2 OF=$3 OLD=$4 NEW=$5 awk '
        {
            at = index($0, ENVIRON["OLD"])
            if (at && ++n == ENVIRON["WHICH"])
                $0 = substr($0, 1, at - 1) ENVIRON["NEW"] substr($0, at + length(ENVIRON["OLD"]))
            print
        }
        END { exit n != ENVIRON["OF"] }' "$1" >"$tmp/mutant"
}

field() { # LINE NUMBER
    printf '%s\n' "$1" | awk -F' @@ ' -v n="$2" 'NF != 4 { exit 1 } { print $n }'
}

n=0 applied=0 killed=0
while IFS= read -r line <&3; do
    case $line in '' | '#'*) continue ;; esac
    n=$((n + 1))
    if ! field "$line" 1 >/dev/null; then
        echo "FAILED  not FILE @@ OLD @@ NEW @@ WHAT: $line"
        continue
    fi
    file=$(field "$line" 1) which=1 of=1
    case $file in *" "*/*) of=${file##*/} which=${file#* } which=${which%/*} file=${file%% *} ;; esac
    what="$file: $(field "$line" 4)"
    file=harness/spec/$file
    if ! mutate "$file" "$which" "$of" "$(field "$line" 2)" "$(field "$line" 3)"; then
        echo "FAILED  no longer applies: $what"
        continue
    fi
    applied=$((applied + 1))
    [ -n "$only_apply" ] && continue
    cp -p "$file" "$tmp/original"
    cat "$tmp/mutant" >"$file"
    by=
    for test in $tests; do
        if ! build "$test"; then
            tail -n 5 "$tmp/log"
            echo "FAILED  does not build: $what"
            by=none
            break
        fi
        passes "$test" && continue
        by=$test
        break
    done
    cat "$tmp/original" >"$file"
    case $by in
    none) ;;
    '') echo "FAILED  survived: $what" ;;
    *)
        killed=$((killed + 1))
        echo "killed  $what ($by)"
        ;;
    esac
done 3<"$list"
if [ -n "$only_apply" ]; then
    echo "$n mutations, $applied apply"
    echo "SKIPPED: whether the tests see them: make check-long"
    [ "$n" -gt 0 ] && [ "$applied" -eq "$n" ]
    exit
fi
expect_green
echo "$n mutations, $killed killed"
[ "$n" -gt 0 ] && [ "$killed" -eq "$n" ]
