#!/bin/sh
# Finds mosquitto, or installs it from Debian's packages; elsewhere it says which command does.
set -eu
PATH="$PATH:/usr/sbin:/usr/local/sbin"
if command -v mosquitto >/dev/null 2>&1; then exit 0; fi

say() { printf '%s\n' "$*" >&2; }

if command -v apt-get >/dev/null 2>&1; then
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            say "mosquitto is missing and this is neither root nor a machine with sudo. Ask for: apt-get install mosquitto"
            exit 1
        fi
        as_root="sudo"
    fi
    # Debian starts a system broker on 1883 after the install; a policy that says no keeps it from doing so here.
    policy="/usr/sbin/policy-rc.d"
    made_policy=""
    if [ ! -e "$policy" ] && [ "$(id -u)" -eq 0 ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made_policy="$policy"
    fi
    trap '[ -z "$made_policy" ] || rm -f "$made_policy"' EXIT
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq mosquitto >&2
    exit 0
fi

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
