#!/bin/sh
# What the browser tests need beside Python: Chromium, and from npm axe-core and the AsyncAPI parser, into .npm-tools.
set -eu
TOOLS=".npm-tools"
WANTED="axe-core@4.14.1 @asyncapi/parser@3.6.6"

DEBIAN="$(dirname "$0")/../../deploy/install-debian.sh"

command -v chromium >/dev/null 2>&1 || sh "$DEBIAN" chromium
command -v npm >/dev/null 2>&1 || sh "$DEBIAN" nodejs npm

if [ "$(cat "$TOOLS/wanted" 2>/dev/null || true)" != "$WANTED" ]; then
    mkdir -p "$TOOLS"
    # shellcheck disable=SC2086
    npm install --silent --no-save --no-package-lock --no-audit --no-fund --ignore-scripts --prefix "$TOOLS" $WANTED >&2
    printf '%s\n' "$WANTED" >"$TOOLS/wanted"
fi
