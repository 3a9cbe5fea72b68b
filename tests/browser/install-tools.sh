#!/bin/sh
# What the browser tests need beside Python: Chromium, and from npm axe-core and the AsyncAPI parser, into .npm-tools.
set -eu
TOOLS=".npm-tools"
WANTED="axe-core@4.14.1 @asyncapi/parser@3.6.6"

say() { printf '%s\n' "$*" >&2; }

install() {
    if ! command -v apt-get >/dev/null 2>&1; then
        say "$1 is missing. Install $2 and try again."
        exit 1
    fi
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            say "$1 is missing and this is neither root nor a machine with sudo. Ask for: apt-get install $2"
            exit 1
        fi
        as_root="sudo"
    fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq $2 >&2
}

command -v chromium >/dev/null 2>&1 || install chromium chromium
command -v npm >/dev/null 2>&1 || install npm "nodejs npm"

if [ "$(cat "$TOOLS/wanted" 2>/dev/null || true)" != "$WANTED" ]; then
    mkdir -p "$TOOLS"
    # shellcheck disable=SC2086
    npm install --silent --no-save --no-package-lock --no-audit --no-fund --ignore-scripts --prefix "$TOOLS" $WANTED >&2
    printf '%s\n' "$WANTED" >"$TOOLS/wanted"
fi
