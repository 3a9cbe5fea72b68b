#!/bin/sh
# Installs Debian packages as root, or by sudo, for what needs them here; no service of theirs is started:
#   sh deploy/install-debian.sh [OPTIONS OF apt-get install] PACKAGE...
set -eu

say() { printf '%s\n' "$*" >&2; }

if ! command -v apt-get >/dev/null 2>&1; then
    say "no apt-get on this machine. Install what Debian calls this, and try again: $*"
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1; then exec sudo sh "$0" "$@"; fi
    say "this is neither root nor a machine with sudo. Ask for: apt-get install $*"
    exit 1
fi

# Debian starts a service as soon as it is installed (mosquitto on 1883); a policy that says no keeps it from doing so.
policy="/usr/sbin/policy-rc.d"
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >&2
