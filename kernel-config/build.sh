#!/bin/bash
# Builds the guest kernel: target/guest/vmlinux in the checkout, and its configuration beside it (vmlinux.config).
#
#   kernel-config/build.sh
#
# Debian's linux-source package and the fragments next to this script make a vmlinux, kept in a cache that is keyed
# by what went into it: the first run takes minutes, every later one about a second. Details: README.md.
set -euo pipefail

readonly SOURCE_PACKAGE=linux-source-6.12
readonly TARBALL=/usr/src/$SOURCE_PACKAGE.tar.xz
readonly TOOLS=(gcc libc6-dev make flex bison bc libelf-dev xz-utils perl)
readonly FRAGMENTS=(base.config virtio.config container.config compat.config)
# Seconds between two lines of progress, and the number of steps of a whole build (only for those lines).
readonly PROGRESS_S=10
readonly EXPECTED_STEPS=1740

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache_root=${HUSK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/husk}
build_dir=
job=

say() { printf 'kernel: %s\n' "$*"; }
die() { printf 'kernel: error: %s\n' "$*" >&2; exit 1; }

clean_up() {
    if [[ -n $job ]]; then
        kill "$job" 2>/dev/null || true
        wait "$job" 2>/dev/null || true
    fi
    if [[ -n $build_dir ]]; then rm -rf "$build_dir"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# --- Packages ----------------------------------------------------------------------------------

apt() {
    local as_root=()
    if ((EUID != 0)); then as_root=(sudo); fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

# Installs what is missing; apt checks every package against Debian's signature.
install_missing() {
    local package log missing=()
    for package in "$SOURCE_PACKAGE" "${TOOLS[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then return; fi
    if ((EUID != 0)) && ! command -v sudo >/dev/null; then
        die "not root, and these packages are missing: ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    log=$(mktemp)
    # A fresh machine has no package lists, and old lists name files that are gone: refresh them and try once more.
    if ! apt install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
            tail -n 15 "$log" >&2
            rm -f "$log"
            die "apt-get cannot install ${missing[*]} (Debian 12 and 13 have them all)"
        fi
    fi
    rm -f "$log"
}

# The tarball must still be the one that came in the signed package.
verify_tarball() {
    local recorded
    recorded=$(awk -v path="${TARBALL#/}" '$2 == path { print $1 }' "/var/lib/dpkg/info/$SOURCE_PACKAGE.md5sums")
    [[ -n $recorded ]] || die "dpkg has no checksum of $TARBALL: reinstall $SOURCE_PACKAGE"
    md5sum --status --check <<<"$recorded  $TARBALL" ||
        die "$TARBALL is not the file of the package $SOURCE_PACKAGE: reinstall it"
}

# --- Configuration -----------------------------------------------------------------------------

# The fragments' demands, one a line: "CONFIG_X=value" or "# CONFIG_X is not set".
demands() {
    (cd "$here" && grep -hE '^(CONFIG_[A-Za-z0-9_]+=|# CONFIG_[A-Za-z0-9_]+ is not set$)' "${FRAGMENTS[@]}")
}

# An option named twice would silently take its last value.
check_fragments() {
    local twice
    twice=$(demands | grep -oE '^(# )?CONFIG_[A-Za-z0-9_]+' | sed 's/^# //' | sort | uniq -d)
    [[ -z $twice ]] || die "named more than once in the fragments: ${twice//$'\n'/ }"
}

# check_config FILE: Kconfig drops what it cannot satisfy without a word, so each demand is looked up in the outcome.
check_config() {
    local line option failed=0
    while IFS= read -r line; do
        option=$(grep -oE 'CONFIG_[A-Za-z0-9_]+' <<<"$line" | head -n 1)
        if [[ $line == \#* ]]; then
            if grep -q "^$option=" "$1"; then
                printf 'kernel: error: %s must be off, but something selects it\n' "$option" >&2
                failed=1
            fi
        elif ! grep -qxF -- "$line" "$1"; then
            printf 'kernel: error: wanted %s, got: %s\n' "$line" \
                "$(grep -E "^(# )?${option}[= ]" "$1" || echo 'nothing (no such option, or a dependency is off)')" >&2
            failed=1
        fi
    done < <(demands)
    ((failed == 0)) || die "the configuration is not what the fragments ask for"
}

configure() {
    local tree=$1 log=$2
    # -n: start from allnoconfig, so an option that no fragment names is off.
    if ! (cd "$tree" && scripts/kconfig/merge_config.sh -n "${FRAGMENTS[@]/#/$here/}") >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "merging the fragments failed"
    fi
    check_config "$tree/.config"
}

# --- Build -------------------------------------------------------------------------------------

# What decides the outcome: the source, what the fragments ask for, how it is built, and the compiler. Comments do not
# (`declare -f` prints functions without them).
cache_key() {
    {
        sha256sum <"$TARBALL"
        demands
        declare -f configure build
        gcc --version | head -n 1
        ld --version | head -n 1
    } | sha256sum | cut -c1-16
}

# with_progress LOG COMMAND...: runs COMMAND with its output in LOG, and says how far it is every few seconds.
with_progress() {
    local log=$1 start=$SECONDS next=$PROGRESS_S nap steps status=0
    shift
    "$@" >"$log" 2>&1 &
    job=$!
    # Reading from a pipe that nobody writes to waits like sleep, without a process that could be left behind.
    exec {nap}<> <(:)
    while kill -0 "$job" 2>/dev/null; do
        if ((SECONDS - start >= next)); then
            steps=$(grep -cE '^  [A-Z]+ ' "$log" || true)
            say "compiling: $steps of about $EXPECTED_STEPS steps, $((SECONDS - start)) s"
            next=$((SECONDS - start + PROGRESS_S))
        fi
        read -r -t 1 -u "$nap" || true
    done
    exec {nap}<&-
    wait "$job" || status=$?
    job=
    return "$status"
}

# build INTO: leaves vmlinux, config and source in the new directory INTO, all or nothing.
build() {
    local into=$1 start=$SECONDS tree version
    verify_tarball
    # The lock is ours, so whatever lies here was left by a build that got killed.
    rm -rf "$cache_root/kernel-build"
    build_dir=$cache_root/kernel-build
    tree=$build_dir/tree
    mkdir -p "$tree" "$build_dir/out"
    version=$(dpkg-query -W -f='${Version}' "$SOURCE_PACKAGE")
    say "unpacking $SOURCE_PACKAGE $version"
    tar -xf "$TARBALL" -C "$tree" --strip-components=1
    configure "$tree" "$build_dir/merge.log"
    # Fixed names and time, and no local version: the same input gives the same file.
    with_progress "$build_dir/make.log" make -C "$tree" --no-print-directory -j"$(nproc)" \
        KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_USER=husk KBUILD_BUILD_HOST=husk \
        KBUILD_BUILD_VERSION=1 LOCALVERSION=-husk vmlinux || {
        cp "$build_dir/make.log" "$cache_root/kernel-failed.log"
        grep -E 'error|Error|ERROR' "$build_dir/make.log" | head -n 20 >&2 || tail -n 20 "$build_dir/make.log" >&2
        die "the build failed; its whole output is in $cache_root/kernel-failed.log"
    }
    # The VMM needs the load segments only; a stack trace has its names from CONFIG_KALLSYMS.
    strip --strip-all -o "$build_dir/out/vmlinux" "$tree/vmlinux"
    cp "$tree/.config" "$build_dir/out/config"
    printf '%s %s\nsha256 %s\n' "$SOURCE_PACKAGE" "$version" "$(sha256sum <"$TARBALL" | cut -d' ' -f1)" \
        >"$build_dir/out/source"
    mv -T "$build_dir/out" "$into"
    rm -rf "$build_dir"
    build_dir=
    say "built in $((SECONDS - start)) s, $(($(stat -c %s "$into/vmlinux") / 1024)) KiB"
}

main() {
    local cached target lock
    check_fragments
    install_missing
    [[ -r $TARBALL ]] || die "$TARBALL is missing although $SOURCE_PACKAGE is installed: reinstall the package"
    mkdir -p "$cache_root"
    cached=$cache_root/kernel-$(cache_key)
    # Two builds at once would only slow each other down: the second waits, and finds the result.
    exec {lock}>"$cache_root/kernel.lock"
    flock "$lock"
    if [[ ! -f $cached/vmlinux ]]; then build "$cached"; fi
    exec {lock}>&-
    target=$(dirname "$here")/target/guest
    mkdir -p "$target"
    # By a second name and a rename: whoever boots from the old file keeps it whole.
    cp "$cached/config" "$target/vmlinux.config"
    cp "$cached/vmlinux" "$target/vmlinux.new"
    mv "$target/vmlinux.new" "$target/vmlinux"
    say "target/guest/vmlinux (from $cached)"
}

main
