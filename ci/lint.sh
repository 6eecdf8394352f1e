#!/bin/sh
# ci/lint.sh: what a reviewer should not have to say. Each rule prints FILE:LINE: what is wrong; any makes it fail.
# A line may be exempt with the comment "lint: allow NAME" and a reason; exemptions are counted and printed.
set -u
bad=$(mktemp) || exit 3
allowed=$(mktemp) || exit 3
trap 'rm -f "$bad" "$allowed"' EXIT
sources=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.def')

# report RULE: reads "FILE:LINE:text" and keeps what is not exempt from RULE.
report() {
    while IFS= read -r line; do
        case "$line" in
        *"lint: allow $1"*) echo "$line" >>"$allowed" ;;
        *) echo "$1: $line" >>"$bad" ;;
        esac
    done
}

# The include DAG: folder -> folders it may include. Anything else points upwards.
awk '
function allow(from, list,   n, parts, i) { n = split(list, parts, " "); for (i = 1; i <= n; i++) ok[from, parts[i]] = 1; known[from] = 1 }
BEGIN {
    allow("engine/core", "core")
    allow("engine/format", "core format")
    allow("engine/quant", "core format quant")
    allow("engine/model", "core format quant model")
    allow("engine/ops", "core format quant model ops")
    allow("engine/cuda", "core format quant model ops cuda")
    allow("engine/paths", "core format quant model ops cuda paths engine.h")
    allow("engine/engine.h", "core format model ops")
    allow("engine/test", "core format quant model ops cuda paths engine.h test")
    split("tap spec compare localise contract fault report run judge fixture", h, " ")
    for (i in h) for (j in h) ok["harness/" h[i], h[j]] = 1
    for (i in h) { ok["harness/" h[i], "engine.h"] = 1; known["harness/" h[i]] = 1 }
    # The spec may not see who uses it; what others find out must not steer it.
    split("tap localise contract fault run judge fixture", n, " ")
    for (j in n) delete ok["harness/spec", n[j]]
    for (j in h) { ok["harness/cli", h[j]] = 1; ok["harness/test", h[j]] = 1 }
    allow("harness/cli", "cli engine.h")
    allow("harness/test", "cli engine.h test")
}
FNR == 1 { m = split(FILENAME, p, "/"); from = m > 2 ? p[1] "/" p[2] : FILENAME }
/^#include "/ {
    split($2, q, "\""); target = q[2]; slash = index(target, "/")
    to = slash ? substr(target, 1, slash - 1) : target
    if (!slash && target != "engine.h") to = "unrooted include " target
    if (known[from] && !((from, to) in ok)) print FILENAME ":" FNR ":" from " must not include " target
}' $sources | report include-dag

# Banned everywhere: calls without a bound or with hidden state. Banned in libraries: talking, ending the process.
grep -nE '\b(sprintf|vsprintf|strcpy|strcat|atoi|atol|atof|gets|strtok|rand|srand)[[:space:]]*\(' $sources | report banned-call
libraries=$(git ls-files 'engine/*.c' 'engine/*.h' 'harness/*.c' 'harness/*.h' | grep -vE '^(engine|harness)/test/|^harness/cli/')
grep -nE '\b(exit|abort|_exit|printf|puts|perror|system|popen)[[:space:]]*\(' $libraries | grep -vE ':[0-9]+: \*|/\*' | report library-call
grep -nE '\bgetenv[[:space:]]*\(' $(git ls-files 'engine/*.c' 'harness/*.c' | grep -vE '/test/|harness/cli/options.c') | report getenv
grep -nE 'ffast-math|Ofast|use_fast_math|march=native|funsafe-math' Makefile $(git ls-files '*.mk') $sources | grep -v 'No -march, no fast-math' | report fast-math
grep -nE '\b(TODO|FIXME|XXX|HACK)\b' $sources | report unfinished

# File length.
for f in $sources $(git ls-files '*.py' '*.sh' Makefile); do
    case "$f" in *_tables.[ch]) continue ;; esac
    n=$(wc -l <"$f")
    [ "$n" -gt 1000 ] && echo "$f:1:$n lines, at most 1000" | report file-length
done

# File names are unique.
for f in $(git ls-files '*.c' '*.cu' | xargs -n1 basename | sort | uniq -d); do
    git ls-files | grep "/$f\$" | sed 's/$/:1:the file name is used twice/' | report unique-name
done

# Orphan kernels: every engine/ops/*/*_<variant>.c must be named by a row of variants.def (V or VX op, variant).
for f in $(git ls-files 'engine/ops/*/*_ref.c' 'engine/ops/*/*_avx2.c' 'engine/ops/*/*_avx512.c'); do
    base=$(basename "$f" .c)
    variant=${base##*_} folder=$(basename "$(dirname "$f")")
    # A row's op may be finer than the folder (act_quant_k, act_quant_32 in act_quant/): the folder's name begins it.
    grep -qE "^ *VX?\(${folder}[a-z0-9_]*, *${variant}," engine/ops/variants.def ||
        echo "$f:1:no row of engine/ops/variants.def for folder $folder, variant $variant" | report orphan-kernel
done

# Goldens are what the manifest says.
sh fixtures/check_manifest.sh >/dev/null || echo "fixtures/MANIFEST.json:1:a file is not what the manifest says (run fixtures/check_manifest.sh)" | report manifest

# Spelling and format, with the tools where they are; a missing tool is said, not passed over.
if command -v codespell >/dev/null 2>&1; then
    codespell -q 3 -L "hel,te,nd,ans,ba,fo,crate,hist,datas,ot,whet,sting,inout,ure" $(git ls-files '*.c' '*.h' '*.md' '*.sh' 'contracts/*.json' Makefile | grep -v fixtures/prompts) 2>/dev/null | report spelling
else
    echo "SKIPPED: spelling: codespell is not installed (make deps DEPS=lint)"
fi
if command -v clang-format >/dev/null 2>&1 && clang-format --version | grep -q 'version 14\.'; then
    for f in $(git ls-files '*.c' '*.h'); do
        clang-format --dry-run --Werror "$f" >/dev/null 2>&1 || echo "$f:1:make format would change it" | report format
    done
else
    echo "SKIPPED: format: clang-format 14 is not installed (make deps DEPS=lint)"
fi

[ -s "$allowed" ] && { echo "exempt, with their reasons:"; cat "$allowed"; }
if [ -s "$bad" ]; then
    cat "$bad"
    echo "lint: $(wc -l <"$bad") findings"
    exit 1
fi
echo "lint: clean ($(echo "$sources" | wc -w) source files)"
