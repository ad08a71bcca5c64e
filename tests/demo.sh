#!/usr/bin/env bash
# The demonstration, run on the node by `make demo`: one container in its own micro-VM.
set -euo pipefail
image=localhost/busybox:latest
runtime=io.containerd.rust.v2

show() {
    printf '\n# %s\n' "$*"
    "$@"
}

printf '\nThe node: %s, %s, kernel %s\n' \
    "$(containerd --version | cut -d' ' -f1,3)" "$(runc --version | head -n 1)" "$(uname -r)"
show ctr run --rm --runtime io.containerd.runc.v2 $image with-runc uname -r
show ctr run --rm --runtime $runtime $image with-husk uname -r

before=$(wc -l </run/results/containerd.log)
# shellcheck disable=SC2016 # expanded by the shell in the container
show ctr run --rm --runtime $runtime $image hello \
    sh -c 'echo "hello from Linux $(uname -r): $(nproc) CPU, $(grep MemTotal /proc/meminfo | tr -s " ")"'

printf '\nTimeline of that run, in milliseconds of this emulated host:\n'
tail -n "+$((before + 1))" /run/results/containerd.log |
    grep -o 'timeline [a-z_]*=[0-9]*' | sed 's/timeline //; s/=/ /' | sort -k2n |
    awk 'NR == 1 { start = $2 } { printf "  %-20s %9.1f\n", $1, ($2 - start) / 1000 }'
