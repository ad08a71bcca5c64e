//! `husk-vmm` by hand: a kernel and an `/init` on the terminal.

use husk_tests::{Node, Vm};

/// Exit codes of `husk-vmm`, as its README lists them.
const RESET: i32 = 11;
const PANIC: i32 = 12;

#[test]
fn a_kernel_boots_to_init_in_64_mib() {
    let _node = Node::enter();
    let output = Vm::running("echo init runs; reboot -f").run();
    assert!(output.text().contains("init runs"), "{output}");
}

#[test]
fn a_reset_without_a_clean_end_has_its_exit_code() {
    let _node = Node::enter();
    Vm::running("reboot -f").run().ended_with(RESET);
}

#[test]
fn a_panic_has_its_exit_code_and_its_text_on_the_console() {
    let _node = Node::enter();
    let output = Vm::running("exit 3").run().ended_with(PANIC);
    assert!(output.text().contains("Attempted to kill init"), "{output}");
}

#[test]
fn the_guest_has_the_vcpus_it_was_given() {
    let _node = Node::enter();
    for vcpus in [1, 2, 4] {
        let mut vm = Vm::running("echo cpus=$(nproc); reboot -f");
        vm.config["vcpus"] = vcpus.into();
        let output = vm.run();
        assert!(output.text().contains(&format!("cpus={vcpus}")), "{output}");
    }
}

#[test]
fn the_guest_has_the_memory_it_was_given() {
    let _node = Node::enter();
    for memory_mib in [64_u64, 512] {
        let mut vm = Vm::running("grep MemTotal /proc/meminfo; reboot -f");
        vm.config["memory_mib"] = memory_mib.into();
        let output = vm.run();
        let total_kib = number_after(&output.text(), "MemTotal:").expect("a MemTotal line");
        let given_kib = memory_mib * 1024;
        assert!(total_kib < given_kib, "{total_kib} KiB of {given_kib}");
        assert!(
            total_kib > given_kib - 28 * 1024,
            "{total_kib} KiB of {given_kib}"
        );
    }
}

#[test]
fn standard_input_is_the_serial_console() {
    let _node = Node::enter();
    let vm = Vm::running("echo ready; read line; echo \"got <$line>\"; reboot -f");
    let mut running = vm.start();
    running.wait_for("ready");
    // More than the 64 bytes that the serial port keeps for the guest.
    let line = "over to you ".repeat(20) + "now";
    running.write(format!("{line}\n").as_bytes());
    running.wait_for(&format!("got <{line}>"));
    running.finish().ended_with(RESET);
}

#[test]
fn the_machine_has_no_pci_and_no_acpi() {
    let _node = Node::enter();
    let script = "ls /sys/bus/pci/devices /sys/firmware/acpi; echo looked; reboot -f";
    let text = Vm::running(script).run().text();
    assert!(text.contains("looked"), "{text}");
    assert_eq!(text.matches("No such file").count(), 2, "{text}");
}

#[test]
fn the_clock_of_the_guest_is_kvms() {
    let _node = Node::enter();
    let clock = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    let text = Vm::running(&format!("cat {clock}; reboot -f")).run().text();
    assert!(text.contains("kvm-clock"), "{text}");
}

#[test]
fn the_wall_clock_of_the_guest_is_the_hosts() {
    let _node = Node::enter();
    let now = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a clock after 1970")
            .as_secs()
    };
    let before = now();
    let text = Vm::running("echo now $(date +%s); reboot -f").run().text();
    let guest = number_after(&text, "now ").expect("a time");
    assert!(
        (before..=now() + 1).contains(&guest),
        "{before} {guest}: {text}"
    );
}

fn number_after(text: &str, word: &str) -> Option<u64> {
    let rest = &text[text.find(word)? + word.len()..];
    rest.split_whitespace().next()?.parse().ok()
}
