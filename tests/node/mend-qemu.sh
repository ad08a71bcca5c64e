#!/usr/bin/env bash
# Takes one instruction out of a QEMU, so that machines inside an emulated machine live.
#
#   mend-qemu.sh QEMU-SYSTEM-X86_64
#
# When VMRUN injects an interrupt, QEMU (11.1 and before) leaves its vector where the main
# loop looks for a pending exception: `cs->exception_index` in helper_vmrun(), case
# SVM_EVTINJ_TYPE_INTR, of target/i386/tcg/system/svm_helper.c. If the loop is left before
# the guest's next exit, for another virtual CPU say, the interrupt is delivered a second
# time, whether the guest allows interrupts or not. A handler then runs within itself:
# guests hang at a spin lock or triple-fault, about once in thirty boots on two CPUs, three
# times in eight with both on one thread. The vector is used nowhere else; this makes the
# store of it a no-op. Of a QEMU built otherwise nothing is changed, and said so.
set -euo pipefail

program=$1
giving_up() {
    echo "node image: $program is not as expected ($1) and stays as it is: guests on it may be lost" >&2
    exit 0
}

address=$(nm -D "$program" | awk '$3 == "helper_vmrun" { print $1 }')
[ -n "$address" ] || giving_up "no helper_vmrun"
code=$(objdump -d -w --start-address="0x$address" --stop-address="$((0x$address + 0x2000))" "$program")
# The store is the only one below `env` (CPUState precedes it) ahead of the delivery.
store=$(grep -m1 -B8 'call.*<do_interrupt_x86_hardirq' <<<"$code" |
    grep -P '\tmov +%e\w+,-0x\w+\(%r\w+\)') || giving_up "no store of the vector"
[ "$(wc -l <<<"$store")" = 1 ] || giving_up "more than one store"
# An address, the bytes and the instruction, with tabs between.
IFS=$'\t' read -r at bytes _ <<<"$store"
at=$((0x$(tr -d ' :' <<<"$at")))
length=$(wc -w <<<"$bytes")
# Where the code lies in the file: .text's address and offset (objdump -h).
read -r vma offset < <(objdump -h "$program" | awk '$2 == ".text" { print $4, $6 }')
position=$((at - 0x$vma + 0x$offset))
[ "$(dd if="$program" bs=1 skip="$position" count="$length" status=none | od -An -tx1 | tr -d ' \n')" = "$(tr -d ' ' <<<"$bytes")" ] ||
    giving_up "the code is elsewhere in the file"
printf '\x90%.0s' $(seq "$length") | dd of="$program" bs=1 seek="$position" conv=notrunc status=none
