#!/bin/sh
# ci/parity.sh PROGRAM BUILTIN [ARG...]: `make parity`. Reads MODEL (empty: BUILTIN), PROMPT, PATHS and MIRROR from the
# environment; a registered model that is not in the cache yet is fetched first.
set -u
program=$1 model=${MODEL:-$2}
shift 2
if ! "$program" fixture path "$model" >/dev/null 2>&1 && grep -qF "\"name\": \"$model\"" fixtures/models.json; then
    sh ci/deps.sh --model || exit
    python3 fixtures/fetch_model.py "$model" ${MIRROR:+--mirror "$MIRROR"} || exit
fi
[ -n "${PROMPT:-}" ] && set -- --prompt "$PROMPT" "$@"
[ -n "${PATHS:-}" ] && set -- --paths "$PATHS" "$@"
exec "$program" run "$model" "$@"
