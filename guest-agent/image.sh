#!/bin/bash
# Builds the agent and wraps it into the guest's initramfs:
#   target/guest/initramfs.cpio   /init (the agent), /dev/console, /newroot
#
# The archive is written here, entry by entry ("newc" format, see the kernel's
# Documentation/driver-api/early-userspace/buffer-format.rst): no tool needed, no
# device nodes on the build machine, and the same bytes for the same agent.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
triple=x86_64-unknown-linux-gnu
agent=$target/$triple/release/husk-agent
image=$root/target/guest/initramfs.cpio

# The explicit target keeps build scripts and macros, which cannot be static, out of it.
(cd "$root" && RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=$target \
    cargo build --locked --release --target "$triple" -p husk-agent)

# The kernel unpacks entries at multiples of 4 bytes.
pad() {
    head -c $(((4 - $1 % 4) % 4)) /dev/zero
}

inode=0
# entry NAME MODE [CONTENTS-FILE [MAJOR MINOR]]: one header, name and contents.
entry() {
    local name=$1 mode=$2 file=${3:-/dev/null} major=${4:-0} minor=${5:-0} size=0
    if [ -f "$file" ]; then size=$(stat -c %s "$file"); fi
    inode=$((inode + 1))
    # magic, inode, mode, uid, gid, links, mtime, size, device, rdevice, name's size, checksum
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        "$inode" "$mode" 0 0 1 0 "$size" 0 0 "$major" "$minor" $((${#name} + 1)) 0
    printf '%s\0' "$name"
    pad $((110 + ${#name} + 1))
    cat "$file"
    pad "$size"
}

mkdir -p "$(dirname "$image")"
{
    entry dev 0040755
    # Without it the kernel would start the agent with no standard I/O.
    entry dev/console 0020600 /dev/null 5 1
    entry newroot 0040755
    entry init 0100755 "$agent"
    entry 'TRAILER!!!' 0
} >"$image.new"
mv "$image.new" "$image"
echo "$image: $(stat -c %s "$image") bytes"
