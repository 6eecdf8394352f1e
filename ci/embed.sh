#!/bin/sh
# ci/embed.sh ID_FILE FILE...: prints a C file with each FILE as bytes, found by name through par_embedded(), and the
# build's identity.
set -eu
id=$(head -n 1 "$1")
shift
echo '#include "report/embedded.h"'
echo '#include <string.h>'
i=0
for f in "$@"; do
    echo "static const unsigned char file_$i[] = {"
    od -An -v -tu1 "$f" | sed 's/  */,/g; s/^,//; s/$/,/'
    echo "0};"
    i=$((i + 1))
done
echo "const char *par_build_id(void) {"
echo "    return \"$id\";"
echo '}'
echo 'const char *par_embedded(const char *name, size_t *n_bytes) {'
i=0
for f in "$@"; do
    echo "    if (!strcmp(name, \"$f\")) {"
    echo "        *n_bytes = sizeof file_$i - 1;"
    echo "        return (const char *)file_$i;"
    echo "    }"
    i=$((i + 1))
done
echo '    return NULL;'
echo '}'
