#!/bin/sh
# ci/test_cli.sh: the program as a person meets it: every kind of bad input, the exit codes that `parity --help` lists,
# and outputs that are whole or absent. PARITY: the program. Uses the built-in model only; needs no network.
# Exit 0 all held, 1 one did not, 77 all held but a part could not be tried here (a line "SKIPPED: why" says which).
# shellcheck disable=SC2086 # $few is several words
set -u
cd "$(dirname "$0")/.." || exit 1
parity=${PARITY:-$PWD/build/release/bin/parity}
root=$PWD
t=$(mktemp -d) || exit 1
mounted=
cleanup() {
    [ -n "$mounted" ] && umount "$mounted"
    rm -rf "$t"
}
trap cleanup EXIT
mkdir "$t/work" || exit 1
cd "$t/work" || exit 1
n_run=0 n_failed=0 skipped=

# note NAME OK: one line a case, and what the program said when it failed.
note() {
    n_run=$((n_run + 1))
    if [ "$2" = yes ]; then
        printf 'ok      %s\n' "$1"
        return
    fi
    n_failed=$((n_failed + 1))
    printf 'FAILED  %s: exit %s\n  stdout: %s\n  stderr: %s\n' "$1" "$got" "$(head -c 300 "$t/out")" "$(head -c 600 "$t/err")"
}

says() { # FILE TEXT|TEXT: each part is in the file
    rest=$2
    while [ -n "$rest" ]; do
        part=${rest%%|*}
        grep -qF -- "$part" "$1" || return 1
        case $rest in *"|"*) rest=${rest#*|} ;; *) rest= ;; esac
    done
}

# refuse NAME CODE TEXT|TEXT COMMAND...: that exit code, every TEXT on stderr as one line that begins with "parity: ",
# nothing on stdout, and no file made or left.
refuse() {
    name=$1 code=$2 texts=$3
    shift 3
    find . >"$t/before"
    "$@" >"$t/out" 2>"$t/err"
    got=$? ok=yes
    find . >"$t/after"
    [ $got -eq "$code" ] || ok=no
    [ -s "$t/out" ] && ok=no
    says "$t/err" "parity: |$texts" || ok=no
    cmp -s "$t/before" "$t/after" || ok="no: files were left"
    note "$name" "$ok"
}

# expect NAME CODE TEXT|TEXT COMMAND...: that exit code, and every TEXT on stdout.
expect() {
    name=$1 code=$2 texts=$3
    shift 3
    "$@" >"$t/out" 2>"$t/err"
    got=$? ok=yes
    [ $got -eq "$code" ] || ok=no
    says "$t/out" "$texts" || ok=no
    note "$name" "$ok"
}

# poke FILE OFFSET OCTAL...: bytes written over those of the file
poke() {
    file=$1 offset=$2
    shift 2
    for byte in "$@"; do printf '%b' "\\0$byte"; done | dd of="$file" bs=1 seek="$offset" conv=notrunc 2>/dev/null
}

"$parity" fixture make -o m.gguf 2>"$t/err" || { echo "FAILED: no model could be made"; exit 1; }
few="--tokens 1,2,3,4,5 -n 2 --quick --threads 1"

# ---- the command line makes no sense: 2 -------------------------------------------------------------------------
refuse "no such command" 2 '' sh -c "'$parity' frobnicate 2>&1 >/dev/null | sed 's/^/parity: /' >&2; exit 2"
refuse "unknown option" 2 '--wrong: no such option' "$parity" run m.gguf --wrong
refuse "option without its value" 2 '--kv: needs a value: f16|f32' "$parity" run m.gguf --kv
refuse "flag with a value" 2 'takes no value' "$parity" run m.gguf --json=yes
refuse "two models" 2 '"other.gguf"' "$parity" run m.gguf other.gguf
refuse "no model" 2 'MODEL is missing' "$parity" run
refuse "number that is none" 2 '--threads: got "many"|from 0 to 4096' "$parity" run m.gguf --threads many
refuse "number out of range" 2 '--threads: got "-1"|from 0 to 4096' "$parity" run m.gguf --threads=-1
refuse "unknown path" 2 '"fast"|f32, f64, q4k-cpu' "$parity" run m.gguf --paths fast --tokens 1
refuse "unknown reference" 2 '"fast"|f32, f64, q4k-cpu' "$parity" run m.gguf --ref fast --tokens 1
refuse "unknown path to generate from" 2 '"fast"|f32, f64, q4k-cpu' "$parity" generate m.gguf --path fast --tokens 1
refuse "unknown fault" 2 'no "no-such-bug", the nearest is|selftest --list' "$parity" run m.gguf --fault no-such-bug --tokens 1
refuse "fault at an unknown op" 2 'no-such-op' "$parity" run m.gguf --fault rope-pairing@no-such-op --tokens 1
refuse "fault at a layer that is no number" 2 '"x"' "$parity" run m.gguf --fault rope-pairing@Qcur_rope:x --tokens 1
refuse "bad --kv" 2 '--kv: got "q8"|f16 or f32' "$parity" run m.gguf --kv q8 --tokens 1
refuse "bad --head" 2 '--head: got "q8"|quant or f32' "$parity" run m.gguf --head q8 --tokens 1
refuse "bad --caps" 2 'caps: got "sse"|avx2' "$parity" run m.gguf --caps sse --tokens 1
refuse "bad --force" 2 'force: got "fast"|op=variant' "$parity" run m.gguf --force fast --tokens 1
refuse "--force of an unknown variant" 2 '"matmul_q"|"warp"' "$parity" run m.gguf --force matmul_q=warp --tokens 1
refuse "bad --schedule" 2 '--schedule: got "fast"|prefill' "$parity" run m.gguf --schedule fast --tokens 1
for which in some sample: sample:0 sample:-1 sample:2x sample:99999999999999999999 last:1; do
    refuse "bad --judge $which" 2 "--judge: got \"$which\", expected all, last or sample:N" "$parity" run m.gguf --judge $which --tokens 1
done
refuse "bad --judge-ref" 2 '--judge-ref: got "24", expected all' "$parity" run m.gguf --judge-ref 24 --tokens 1
refuse "--quick with --full" 2 '--quick and --full' "$parity" run m.gguf --quick --full --tokens 1
refuse "two prompts" 2 'one of --prompt' "$parity" run m.gguf -p a --tokens 1
refuse "empty prompt" 2 'got 0 tokens, expected at least 1' "$parity" run m.gguf -p ''
refuse "empty list of ids" 2 'got 0 tokens, expected at least 1' "$parity" generate m.gguf --tokens ''
refuse "ids that are no numbers" 2 '--tokens: at "x,3"' "$parity" run m.gguf --tokens 1,2,x,3
refuse "negative id" 2 '--tokens: at "-3"' "$parity" run m.gguf --tokens=-3
refuse "id beyond 32 bits" 2 '--tokens: at "99999999999"' "$parity" run m.gguf --tokens 99999999999

# ---- files and ids that are refused: 4 --------------------------------------------------------------------------
refuse "no such model" 4 '/nonexistent: no such file|nearest is' "$parity" run /nonexistent --tokens 1
refuse "nearly a registered name" 4 'qwen2.5-coder-1.5|the nearest is qwen2.5-coder-1.5b|make model NAME=' \
    "$parity" inspect qwen2.5-coder-1.5
refuse "model is a folder" 4 'is a folder, expected a model file' "$parity" run . --tokens 1
refuse "model is a device" 4 '/dev/null: not a regular file' "$parity" inspect /dev/null
mkfifo pipe && refuse "model is a pipe" 4 'pipe: not a regular file' timeout 20 "$parity" inspect pipe
: >empty.gguf
refuse "model of 0 bytes" 4 'empty.gguf: 0 bytes, expected' "$parity" run empty.gguf --tokens 1
refuse "prompt file that does not exist" 4 'prompt file none.txt' "$parity" run m.gguf -f none.txt
refuse "id outside the vocabulary" 4 '512|99999' "$parity" run m.gguf --tokens 1,99999 --quick
refuse "id outside, generated from" 4 'id 99999 at position 1, expected 0 to 511' "$parity" generate m.gguf --tokens 1,99999
refuse "id outside, traced" 4 '99999' "$parity" trace m.gguf --path f32 --tokens 1,99999 -o x.parity
refuse "prompt over --ctx" 4 '--ctx: got 2, expected at least the 3 ids' "$parity" generate m.gguf --tokens 1,2 -n 1 --ctx 2
refuse "decode over --ctx" 4 '--ctx: got 4, expected at least the 19' "$parity" run m.gguf --tokens 1,2,3 --ctx 4
awk 'BEGIN {for (i = 0; i < 2049; i++) printf "%d ", i % 500}' >long.ids
refuse "prompt over the model's context" 4 'got 2049 ids|2048|context_length|--ctx' \
    "$parity" generate m.gguf --tokens "$(cat long.ids)" -n 0
expect "prompt over the context when --ctx asks for it" 0 '' \
    "$parity" generate m.gguf --tokens "$(cat long.ids)" -n 0 --ctx 2049
refuse "hypotheses folder that does not exist" 4 'none/h' "$parity" run m.gguf --hypotheses none/h $few

# ---- broken models: 4, and never a signal -----------------------------------------------------------------------
for file in "$root"/fixtures/bad/*.gguf; do
    refuse "run $(basename "$file")" 4 "parity: " "$parity" run "$file" --tokens 1,2 -n 1 --quick --threads 1
    refuse "generate $(basename "$file")" 4 "parity: " "$parity" generate "$file" --tokens 1,2 -n 1 --threads 1
done
refuse "missing tensor, by name" 4 'blk.0.attn_v.weight|missing' "$parity" run "$root/fixtures/bad/missing-tensor.gguf" $few
refuse "wrong shape, both shapes" 4 'blk.0.ffn_up.weight|63|64' "$parity" run "$root/fixtures/bad/wrong-shape.gguf" $few
refuse "NaN in a norm" 4 'blk.0.ffn_norm.weight|nan|finite' "$parity" run "$root/fixtures/bad/nan-norm.gguf" --tokens 1,2 -n 1
size=$(wc -c <m.gguf)
for part in 3 20 1000 80000 100000 $((size / 2)) $((size - 1)); do
    head -c "$part" m.gguf >cut.gguf
    refuse "model cut to $part of $size bytes" 4 'cut.gguf: ' "$parity" run cut.gguf $few
done
# flip NAME OFFSET OCTAL TEXT: one byte of the header
flip() {
    cp m.gguf flip.gguf
    poke flip.gguf "$2" "$3"
    refuse "header byte $2 ($1) made $3" 4 "flip.gguf: $4" "$parity" run flip.gguf $few
}
flip magic 0 100 "not a GGUF file"
flip version 4 203 "GGUF version 131, expected 2 or 3"
flip "high byte of the tensor count" 15 100 ""
flip "high byte of the key count" 23 100 ""
flip "high byte of a key's length" 31 100 "key 0"
flip "tensor count one too many" 8 114 ""
# Everywhere else a flipped bit may leave a valid file: the codes say which it is, and nothing crashes.
offset=24 odd=0 n_refused=0
while [ $offset -lt 90112 ]; do
    cp m.gguf flip.gguf
    poke flip.gguf $offset 377
    "$parity" generate flip.gguf --tokens 1 -n 1 --threads 1 >"$t/out" 2>"$t/err"
    got=$?
    case $got in
    0 | 5) ;;
    4) n_refused=$((n_refused + 1)) ;;
    *) odd=$((odd + 1)) && note "byte $offset made 0xff" no ;;
    esac
    offset=$((offset + 1487))
done
[ $odd -eq 0 ] && [ $n_refused -gt 0 ] && note "a byte made 0xff at every 1487th place of the header: 0, 4 or 5, $n_refused refused" yes
[ $n_refused -gt 0 ] || note "no flipped byte was refused" no
tensor() { # NAME: its offset in m.gguf
    "$parity" inspect m.gguf --tensors | awk -v name="$1" '$1 == name {print $NF}'
}
cp m.gguf nan.gguf
poke nan.gguf "$(tensor blk.0.attn_q.bias)" 000 000 300 177
refuse "NaN in a bias" 4 'blk.0.attn_q.bias: value 0 is nan' "$parity" run nan.gguf $few
cp m.gguf nan.gguf
poke nan.gguf "$(tensor blk.0.ffn_up.weight)" 377 177
expect "NaN as a block's scale" 5 "NONFINITE|NaN on both sides: look at the model's weights" "$parity" run nan.gguf $few
expect "judged at all, reference at a sample" 0 "3 of 7|positions judged, sample:24 and both ends|7 of 7|positions judged, all" "$parity" run m.gguf $few
expect "judged at the last" 0 "7 of 7|positions judged, all|1 of 7|positions judged, last" "$parity" run m.gguf $few --judge last --judge-ref all
expect "judged at a sample" 0 "3 of 7|positions judged, sample:3 and both ends" "$parity" run m.gguf $few --judge sample:3
refuse "capture of another kind" 4 'm.gguf' "$parity" diff m.gguf m.gguf
refuse "capture that does not exist" 4 'none.parity: cannot be opened' "$parity" diff none.parity none.parity
rm -f flip.gguf nan.gguf cut.gguf

# ---- paths on a card that is not there: refused, and nothing else in their place ---------------------------------
hide="env CUDA_VISIBLE_DEVICES="
for command in "run m.gguf --paths" "generate m.gguf --path" "bench m.gguf --paths" "selftest m.gguf --paths" "run m.gguf --ref"; do
    refuse "$command q4k-cuda without a card" 4 'path q4k-cuda is unavailable: ' $hide "$parity" $command q4k-cuda --tokens 1
done
refuse "trace on a card that is not there" 4 'path f32-cuda is unavailable: ' \
    $hide "$parity" trace m.gguf --path f32-cuda --tokens 1 -o none.trace
expect "two candidates, one of them not here" 4 'candidate q4k-cpu|HELD (exit 0)|candidate q4k-cuda|REFUSED (exit 4): q4k-cuda was not run' \
    $hide "$parity" run m.gguf --paths q4k-cpu,q4k-cuda --report both $few
got=0
[ -f both/q4k-cpu/verdict.json ] && [ ! -e both/q4k-cuda ] && grep -q -- "--paths q4k-cpu" both/q4k-cpu/report.txt && ok=yes || ok=no
note "each candidate has its own report" "$ok"
expect "what serves what, and the weights as bound" 0 'dispatch|matmul_q|Q4_K|ref|forced|blk.0.attn_q.weight|0 of them not the file' \
    "$parity" paths --explain m.gguf --paths q4k-cpu --force matmul_q=ref
expect "what serves what, on every path that runs" 0 'q4k-cpu|path q4k-cuda-graph is unavailable: ' \
    $hide "$parity" paths --explain m.gguf
refuse "what serves what on a card that is not there" 4 'path q4k-cuda is unavailable: ' \
    $hide "$parity" paths --explain m.gguf --paths q4k-cuda
expect "scribbled scratch changes nothing" 0 'HELD (exit 0)' "$parity" run m.gguf --scribble $few
refuse "a flag that means nothing to the path" 2 'fp8_fast|means nothing' "$parity" run m.gguf --fp8-fast $few
refuse "a launch plan that is not there" 2 'no launch plan' "$parity" run m.gguf --fault plan-node-missing $few
refuse "an empty name among paths" 2 '--paths: got ' "$parity" run m.gguf --paths q4k-cpu,,f32 $few

# ---- outputs that cannot be written: 4, nothing left ------------------------------------------------------------
: >file
refuse "report folder under /proc" 4 'report folder /proc/none/x cannot be written' "$parity" run m.gguf --report /proc/none/x $few
refuse "report folder is a file" 4 'report folder file cannot be written|expected a folder' "$parity" run m.gguf --report file $few
refuse "report folder under a file" 4 'report folder file/x/y' "$parity" run m.gguf --report file/x/y $few
refuse "a report folder is not made for a run that is refused" 4 'none.gguf' "$parity" run none.gguf --report new/dir $few
mkdir old && echo '{"verdict": "HELD"}' >old/verdict.json
"$parity" run none.gguf --report old $few >"$t/out" 2>"$t/err"
got=$?
ok=yes
[ $got -eq 4 ] && [ ! -e old/verdict.json ] || ok=no
note "an old verdict.json does not speak for a refused run" "$ok"
refuse "made model in a folder that does not exist" 4 'none/x: cannot be written' "$parity" fixture make -o none/x
refuse "made model over a folder" 4 'is a folder, expected a file' "$parity" fixture make -o old
refuse "capture in a folder that does not exist" 4 'none/x: cannot be written' "$parity" trace m.gguf --path f32 --tokens 1 -o none/x
if [ -c /dev/full ]; then
    ln -s /dev/full full # a program that replaced its output would replace the link, not the device
    refuse "made model on a full device" 4 'full: write of|No space left' "$parity" fixture make -o full
    refuse "cut model on a full device" 4 'full: write of|No space left' "$parity" fixture cut m.gguf --layers 0 -o full
    refuse "capture on a full device" 4 'full: write of|No space left' "$parity" trace m.gguf --path f32 --tokens 1 -o full
    ok=yes
    [ -c full ] || ok=no
    note "the device is still a device" "$ok"
    for command in --help paths "fixture list" "inspect m.gguf" "inspect m.gguf --json" "tokenize m.gguf" \
        "generate m.gguf --tokens 1 -n 1" "generate m.gguf --tokens 1 -n 1 --json" "run m.gguf $few --json"; do
        refuse "stdout is full: $command" 4 'standard output: cannot be written' sh -c "'$parity' $command >/dev/full"
    done
else
    skipped="no /dev/full here"
fi
mkdir disk
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=256k none disk 2>/dev/null; then
    mounted=$t/work/disk
    refuse "made model on a full disk" 4 'disk/x: write of|No space left' "$parity" fixture make -o disk/x
    refuse "capture on a full disk" 4 'disk/x: |No space left' "$parity" trace m.gguf --path f32 --tokens 1,2,3,4 -o disk/x
    dd if=/dev/zero of=disk/filler bs=4096 count=63 2>/dev/null
    "$parity" run m.gguf --report disk/report $few >"$t/out" 2>"$t/err"
    got=$? ok=yes
    [ $got -eq 4 ] && says "$t/err" 'parity: disk/report/' && [ ! -e disk/report/verdict.json ] || ok=no
    [ -z "$(find disk -name '*.tmp.*')" ] || ok=no
    note "report on a full disk: no verdict.json, no temporary file" "$ok"
    umount disk && mounted=
else
    skipped="${skipped:+$skipped; }no small file system could be mounted, so no disk was full"
fi

# ---- verdicts and their outputs ---------------------------------------------------------------------------------
"$parity" run m.gguf --report good/a/b --json $few >"$t/out" 2>"$t/err"
got=$? ok=yes
[ $got -eq 0 ] && [ ! -s "$t/err" ] && says "$t/out" '"HELD"' || ok=no
for file in report.txt report.json report.md junit.xml verdict.json; do [ -s "good/a/b/$file" ] || ok=no; done
[ -z "$(find good -name '*.tmp.*')" ] || ok=no
note "a clean run: 0, HELD, five files, a quiet stderr" "$ok"
cp "$t/out" good.json
"$parity" run m.gguf --report bad --fault rope-pairing --json $few >"$t/out" 2>"$t/err"
got=$? ok=yes
[ $got -eq 1 ] && says bad/verdict.json '"DIVERGED"|rope' || ok=no
note "a planted fault: 1, DIVERGED in verdict.json" "$ok"
cp "$t/out" bad.json
"$parity" generate m.gguf --tokens 1,2 -n 2 --json >generate.json
"$parity" inspect m.gguf --json >inspect.json
"$parity" tokenize m.gguf -p 'a "b"' --json >tokenize.json
if command -v python3 >/dev/null 2>&1; then
    for file in good.json bad.json generate.json inspect.json tokenize.json good/a/b/verdict.json bad/verdict.json bad/report.json; do
        python3 -c 'import json, sys
one = json.load(open(sys.argv[1], encoding="utf-8"))
assert isinstance(one, dict) and "schema" in one, "no object with a schema"' "$file" 2>"$t/err"
        got=$? ok=yes
        [ $got -eq 0 ] || ok=no
        note "$file is one JSON object with a schema" "$ok"
    done
    python3 -c 'import sys, xml.etree.ElementTree as tree
clean, faulty = (tree.parse(name + "/junit.xml").getroot() for name in sys.argv[1:])
assert not clean.findall(".//failure") and clean.findall(".//testcase"), "the clean run"
assert faulty.findall(".//failure"), "the fault is no failure"' good/a/b bad 2>"$t/err"
    got=$? ok=yes
    [ $got -eq 0 ] || ok=no
    note "junit.xml: a failure with the fault, none without" "$ok"
else
    skipped="${skipped:+$skipped; }no python3, so nobody else read the JSON and the XML"
fi

# ---- from elsewhere, installed, and through make ----------------------------------------------------------------
expect "hypotheses are found from another folder" 0 'HELD' "$parity" run m.gguf $few
says "$t/err" 'none is evaluated' && note "hypotheses are found from another folder: said so" no
"$parity" help >"$t/out" 2>"$t/err"
got=$? ok=yes
for code in 0 1 2 3 4 5; do grep -q "^  $code  " "$t/out" || ok=no; done
[ $got -eq 0 ] || ok=no
note "help lists the exit codes" "$ok"
# The make that runs this test, with its flags, is another story than the one that is tried here.
unset MAKEFLAGS MFLAGS MAKELEVEL MODEL PROMPT PATHS MIRROR
mode=${parity%/bin/parity} mode=${mode##*/build/}
make -s -C "$root" MODE="$mode" parity MODEL=/nonexistent >"$t/out" 2>"$t/err"
got=$? ok=yes
[ $got -eq 2 ] && says "$t/err" 'parity: /nonexistent: no such file' || ok=no
note "make parity MODEL=/nonexistent: 2, and the program's message" "$ok"
make -s -C "$root" help >"$t/out" 2>"$t/err"
got=$? ok=yes
for target in help all check check-long parity model bench lint format fuzz-smoke install deps clean; do
    grep -q "^  make $target " "$t/out" || ok=no
done
note "make help lists every command" "$ok"
make -s -C "$root" MODE="$mode" install DESTDIR="$t/dest" PREFIX=/usr >"$t/out" 2>"$t/err"
got=$? ok=yes
[ $got -eq 0 ] && [ -x "$t/dest/usr/bin/parity" ] && [ -d "$t/dest/usr/share/parity/contracts/hypotheses" ] || ok=no
note "make install DESTDIR=.." "$ok"
expect "the installed program finds its contracts" 0 'FALSIFY-' "$t/dest/usr/bin/parity" contract list

echo "test_cli: $n_run cases, $n_failed failed"
[ $n_failed -eq 0 ] || exit 1
[ -z "$skipped" ] || { echo "SKIPPED: $skipped"; exit 77; }
