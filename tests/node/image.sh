#!/usr/bin/env bash
# Makes the node: a Debian host with containerd and runc, as a disk image.
#
#   image.sh [SUITE]     prints the folder that holds the node of that Debian suite
#                        (trixie): root.img vmlinuz initrd config busybox qemu/
#
# The folder is in the cache under the suite and a hash of the scripts and the package
# list, so it is built once (about two minutes) and shared by every checkout. Nothing
# is mounted and the host's apt sources stay as they are.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)

suite=${1:-trixie}
key=$(cat "$here/image.sh" "$here/mend-qemu.sh" "$here/packages" | sha256sum | cut -c1-16)
cache=${HUSK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/husk}
image=$cache/node-$suite-$key
if [ -e "$image/root.img" ]; then
    echo "$image"
    exit 0
fi

say() { echo "node image: $*" >&2; }

"$here/host-packages.sh" debootstrap:debootstrap mkfs.ext4:e2fsprogs objdump:binutils

# The mirror is the one this host already trusts for Debian's main archive.
mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT)' 'Created-By: Packages' |
    awk '$1 ~ /\/debian\/?$/ && $2 == "main" { print $1; exit }')
[ -n "$mirror" ] || {
    say "this host's apt configuration names no Debian archive to install $suite from"
    exit 1
}

mkdir -p "$cache"
work=$(mktemp -d "$cache/node-$suite-$key.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree

say "installing Debian $suite, about two minutes"
packages=$(grep -v '^#' "$here/packages" | xargs | tr ' ' ',')
# An older debootstrap may not know the suite by name; sid's recipe fits them all.
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
# Before its reader and its writer, which start at the same time.
: >"$work/debootstrap.log"
debootstrap --variant=minbase --include="$packages" "$suite" "$tree" "$mirror" "$script" \
    >"$work/debootstrap.log" 2>&1 &
installer=$!
tail -n +1 -f "$work/debootstrap.log" --pid=$installer |
    awk '/^I: (Retrieving|Unpacking|Configuring) / && ++n % 100 == 0 { print "node image: " n " steps" }' >&2
wait $installer || {
    tail -n 20 "$work/debootstrap.log" >&2
    say "debootstrap failed; its last lines are above"
    exit 1
}

say "collecting kernel and QEMU"
cp "$tree"/boot/vmlinuz-* "$work/vmlinuz"
cp "$tree"/boot/initrd.img-* "$work/initrd"
cp "$tree"/boot/config-* "$work/config"
cp "$tree/usr/bin/busybox" "$work/busybox"

# The QEMU that runs the nodes: the program, what it links to (through its own loader)
# and its firmware.
mkdir -p "$work/qemu/lib"
loader=$tree/lib64/ld-linux-x86-64.so.2
cp -L "$loader" "$tree/usr/bin/qemu-system-x86_64" "$work/qemu/"
"$loader" --library-path "$tree/usr/lib/x86_64-linux-gnu" --list "$work/qemu/qemu-system-x86_64" |
    awk -v tree="$tree" 'index($3, tree) == 1 { print $3 }' | xargs cp -L -t "$work/qemu/lib"
"$here/mend-qemu.sh" "$work/qemu/qemu-system-x86_64"
cp -rL "$tree/usr/share/seabios" "$work/qemu/firmware"
cp -L "$tree"/usr/share/qemu/{kvmvapic.bin,linuxboot_dma.bin,efi-virtio.rom} "$work/qemu/firmware/"

say "packing the disk"
rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
echo node >"$tree/etc/hostname"
# The job, the programs under test and the rest of PID 1 come on a second disk.
cat >"$tree/sbin/node-init" <<'INIT'
#!/bin/sh
mount -o ro /dev/vdb /usr/local && exec /usr/local/lib/node/init
INIT
chmod 755 "$tree/sbin/node-init"
truncate -s 4G "$work/root.img"
mkfs.ext4 -q -F -L node -E lazy_itable_init=1,lazy_journal_init=1 -d "$tree" "$work/root.img"
rm -rf "$tree" "$work/debootstrap.log"

chmod 755 "$work"
# Whoever renames first wins; the other's work is the same.
mv -T "$work" "$image" 2>/dev/null || [ -e "$image/root.img" ]
say "ready"
echo "$image"
