#!/bin/sh
# Finds mosquitto, or installs it from Debian's packages; elsewhere it prints the command that does.
set -eu
PATH="$PATH:/usr/sbin:/usr/local/sbin"
if command -v mosquitto >/dev/null 2>&1; then exit 0; fi

if command -v apt-get >/dev/null 2>&1; then exec sh "$(dirname "$0")/../deploy/install-debian.sh" mosquitto; fi

say() { printf '%s\n' "$*" >&2; }

say "mosquitto is missing. Install it and try again:"
case "$(uname -s)" in
    Darwin) say "  brew install mosquitto" ;;
    *)
        if command -v dnf >/dev/null 2>&1; then say "  sudo dnf install mosquitto"
        elif command -v pacman >/dev/null 2>&1; then say "  sudo pacman -S mosquitto"
        elif command -v apk >/dev/null 2>&1; then say "  sudo apk add mosquitto"
        elif command -v zypper >/dev/null 2>&1; then say "  sudo zypper install mosquitto"
        else say "  see https://mosquitto.org/download/"
        fi ;;
esac
exit 1
