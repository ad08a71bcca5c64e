#!/usr/bin/env bash
# Makes the Python that runs OpenStack's code on the node, which has neither a network
# nor a Python of its own.
#
#   python.sh     prints a folder `python`: run it as python/run SCRIPT [ARG...]
#
# It holds Debian's interpreter from this host with all that it links to (through its own
# loader), its library, and the packages of requirements.txt. It is kept in the cache
# under a hash of what it is made of.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/../node/host-packages.sh" /usr/bin/python3:python3 /usr/bin/pip3:python3-pip

key=$(cat "$here"/{python.sh,requirements.txt,constraints.txt} /usr/bin/python3 | sha256sum | cut -c1-16)
cache=${HUSK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/husk}/openstack-$key
if [ -e "$cache" ]; then
    echo "$cache/python"
    exit 0
fi

echo "openstack: installing its Python packages, about two minutes" >&2
mkdir -p "$(dirname "$cache")"
work=$(mktemp -d "$cache.XXXXXX")
trap 'rm -rf "$work"' EXIT
python=$work/python
mkdir -p "$python"/{bin,lib,so}
/usr/bin/python3 -m pip install --quiet --root-user-action ignore --target "$python/site" \
    -r "$here/requirements.txt" -c "$here/constraints.txt" >&2

cp -L /usr/bin/python3 "$python/bin/"
cp -a "$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" "$python/lib/"
find "$python" -type f '(' -name '*.so*' -o -name python3 ')' -exec ldd {} + 2>/dev/null |
    awk '$2 == "=>" { print $3 } /ld-linux/ { print $1 }' | grep '^/' | grep -v "^$work" |
    sort -u | xargs cp -L -t "$python/so"
cat >"$python/run" <<'RUN'
#!/bin/sh
here=$(dirname "$0")
export PYTHONHOME="$here" PYTHONPATH="$here/site" PYTHONWARNINGS=ignore
exec "$here"/so/ld-linux-*.so.* --library-path "$here/so" "$here/bin/python3" "$@"
RUN
chmod 755 "$python/run" "$work"
mv -T "$work" "$cache" 2>/dev/null || [ -e "$cache" ]
echo "$cache/python"
