#!/usr/bin/env bash
# Makes the container images of the tests: Debian's static busybox, nothing else.
#
#   busybox-image.sh BUSYBOX OUT.tar
#
# A docker archive, the same bytes every time. localhost/busybox:latest runs a shell,
# localhost/pause:latest nothing, as the first container of a pod does.
set -euo pipefail

busybox=$1
out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

mkdir -p "$root"/{bin,dev,etc,proc,root,sys,tmp,usr,var}
chmod 1777 "$root/tmp"
install -m 755 "$busybox" "$root/bin/busybox"
"$busybox" --list | grep -vx busybox | while read -r applet; do
    ln -s busybox "$root/bin/$applet"
done
ln -s ../bin "$root/usr/bin"
cat >"$root/etc/passwd" <<'EOF'
root:x:0:0:root:/root:/bin/sh
user:x:1000:1000:user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
EOF
cat >"$root/etc/group" <<'EOF'
root:x:0:
user:x:1000:
audio:x:29:user
nogroup:x:65534:
EOF

reproducible=(--sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu)
tar "${reproducible[@]}" -C "$root" -cf "$work/layer.tar" .
diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
config() {
    cat <<EOF
{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z",
"config":{"Env":["PATH=/bin"],"Cmd":[$1],"WorkingDir":"/"},
"rootfs":{"type":"layers","diff_ids":["sha256:$diff_id"]}}
EOF
}
config '"/bin/sh"' >"$work/config.json"
config '"sleep","infinity"' >"$work/pause.json"
cat >"$work/manifest.json" <<'EOF'
[{"Config":"config.json","RepoTags":["localhost/busybox:latest"],"Layers":["layer.tar"]},
{"Config":"pause.json","RepoTags":["localhost/pause:latest"],"Layers":["layer.tar"]}]
EOF
tar "${reproducible[@]}" -C "$work" -cf "$out" manifest.json config.json pause.json layer.tar
