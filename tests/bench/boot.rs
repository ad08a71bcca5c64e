//! (b) From the start of the VMM to the guest's `/init`, against QEMU's microvm machine.

use std::process::Command;
use std::time::Instant;

use husk_tests::{Running, Vm, vm};

use crate::{Report, kvm};

/// Boots of each VMM, taken in turns.
pub const RUNS: usize = 5;

/// What `/init` prints first.
const MARK: &str = "init runs";

/// Times both on the same kernel, initramfs, command line, memory and console.
pub fn measure(report: &mut Report) {
    let machine = Vm::running(&format!("echo {MARK}; reboot -f"));
    let husk: &dyn Fn() -> Command = &|| machine.command();
    let peer: &dyn Fn() -> Command = &|| qemu(&machine);
    let (ours, theirs) = (("husk-vmm", husk), ("QEMU microvm", peer));
    report.in_turns("boot_ratio_qemu", RUNS, ours, theirs, |vmm| time_ms(vmm()));
    let idle = Vm::running(&format!("echo {MARK}; sleep 1000"));
    report.count(
        "boot_exits_qemu",
        exits(qemu(&idle)),
        "VM exits, QEMU microvm",
    );
    report.count("boot_exits", exits(idle.command()), "VM exits, husk-vmm");
}

/// How often the machine left the guest on its way to `/init`.
fn exits(command: Command) -> u64 {
    let mut running = Running::start(command);
    running.wait_for(MARK);
    // No other machine lives.
    kvm::exits()
}

fn time_ms(command: Command) -> f64 {
    let start = Instant::now();
    let mut running = Running::start(command);
    running.wait_for(MARK);
    // Killed when dropped: how the guest goes down is not measured.
    crate::milliseconds(start)
}

/// The microvm machine without anything that can be left out.
pub fn qemu(machine: &Vm) -> Command {
    let text = |key: &str| {
        machine.config["kernel"][key]
            .as_str()
            .expect("a string")
            .to_owned()
    };
    let memory = format!("{}M", machine.config["memory_mib"]);
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "microvm,acpi=off,pit=off,pic=off,rtc=off"])
        .args(["-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &memory])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio", "-kernel", vm::KERNEL])
        .args(["-initrd", &text("initramfs"), "-append", &text("cmdline")]);
    qemu
}
