//! (b) From the start of the VMM to the guest's `/init`, against QEMU's microvm machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use husk_tests::{Running, Vm, process, vm};

use crate::Report;

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

/// How often the machine left the guest on its way to `/init`: on silicon each of these
/// costs a microsecond or two that instructions do not show.
fn exits(command: Command) -> u64 {
    const DEBUGFS: &str = "/sys/kernel/debug";
    if !Path::new(DEBUGFS).join("kvm").exists() {
        let mut mount = Command::new("mount");
        mount.args(["-t", "debugfs", "debugfs", DEBUGFS]);
        process::run(mount).succeeded();
    }
    let mut running = Running::start(command);
    running.wait_for(MARK);
    // The sum over all machines that live: this one.
    let exits = fs::read_to_string(format!("{DEBUGFS}/kvm/exits")).expect("KVM's statistics");
    exits.trim().parse().expect("a number")
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
