#!/bin/sh
# The tests let systemd judge the units of deploy/systemd; this installs its tools, and starts nothing.
set -eu
if ! command -v apt-get >/dev/null 2>&1; then
    echo "systemd-analyze is missing, and this is no Debian: install systemd, or run the tests without tests/acceptance/test_deploy.py" >&2
    exit 1
fi
as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends systemd >&2
