#!/usr/bin/env bash
# Installs the Debian packages of the commands that this host lacks.
#
#   host-packages.sh COMMAND:PACKAGE...
#
# Says nothing and does nothing when every command is there.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

missing=()
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
((${#missing[@]})) || exit 0

((EUID == 0)) || {
    echo "host: not root, and these packages are missing: ${missing[*]}" >&2
    exit 1
}
echo "host: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 </dev/null; }
# A fresh machine has no package lists, and old ones name files that are gone.
install || { "${apt[@]}" update >"$log" 2>&1 && install; } || {
    cat "$log" >&2
    exit 1
}
