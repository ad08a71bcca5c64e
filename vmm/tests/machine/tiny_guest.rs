//! From configuration to exit code.

use serde_json::{Value, json};

use crate::support::*;

fn config(kernel: &std::path::Path) -> Value {
    json!({ "vcpus": 2, "memory_mib": 64, "kernel": { "image": kernel, "cmdline": "" } })
}

/// Exit code, standard output and log of a guest made of `code`.
fn run(name: &str, code: &[&[u8]], console: &str) -> (i32, String, String) {
    let scratch = Scratch::new(name);
    let mut config = config(&scratch.kernel(code));
    config["console"] = console.into();
    let output = scratch.run(&config);
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_clean_end_is_announced_then_reset() {
    if kvm_is_missing() {
        return;
    }
    let (code, _, log) = run(
        "clean",
        &[ANNOUNCE_INIT, ANNOUNCE_CLEAN_END, RESET, WAIT],
        "ring",
    );
    assert_eq!(code, 0, "{log}");
    for name in ["vm_created", "kernel_entered", "init_running"] {
        assert!(log.contains(&format!("info timeline {name}=")), "{log}");
    }
    assert!(log.contains("info the guest ended cleanly"), "{log}");
}

#[test]
fn a_reset_alone_is_a_crash_and_the_console_is_logged() {
    if kvm_is_missing() {
        return;
    }
    let (code, stdout, log) = run("reset", &[PRINT, RESET, WAIT], "ring");
    assert_eq!(code, 11, "{log}");
    assert!(log.contains("error console: !"), "{log}");
    assert_eq!(stdout, "");
}

#[test]
fn the_console_prints_when_asked() {
    if kvm_is_missing() {
        return;
    }
    let (code, stdout, log) = run("stdio", &[PRINT, ANNOUNCE_CLEAN_END, RESET, WAIT], "stdio");
    assert_eq!((code, stdout.as_str()), (0, "!"), "{log}");
}

#[test]
fn a_triple_fault_is_told_from_a_reset() {
    if kvm_is_missing() {
        return;
    }
    let (code, _, log) = run("fault", &[FAULT], "ring");
    assert_eq!(code, 13, "{log}");
}

#[test]
fn what_cannot_be_booted_is_refused_with_the_reason() {
    let scratch = Scratch::new("refused");
    let image = scratch.kernel(&[WAIT]);
    let mut cases = Vec::new();
    let mut unknown = config(&image);
    unknown["vcpu"] = 1.into();
    cases.push((unknown, "vcpu"));
    let mut none = config(&image);
    none["vcpus"] = 0.into();
    cases.push((none, "`vcpus` is 0, must be 1 to 254"));
    cases.push((
        config("/none/vmlinux".as_ref()),
        "cannot open the kernel /none/vmlinux",
    ));
    let mut no_kvm = config(&image);
    no_kvm["kvm"] = "/none/kvm".into();
    cases.push((no_kvm, "cannot open KVM /none/kvm"));
    let mut null = config(&image);
    null["kvm"] = "/dev/null".into();
    cases.push((null, "does not answer as KVM does"));
    if !kvm_is_missing() {
        cases.push((config("/dev/null".as_ref()), "cannot load the kernel"));
        let mut huge = config(&image);
        let initramfs = scratch.path().join("huge");
        std::fs::File::create(&initramfs)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        huge["kernel"]["initramfs"] = initramfs.to_str().into();
        cases.push((huge, "give the VM more memory"));
    }
    for (config, reason) in cases {
        let output = scratch.run(&config);
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains(reason), "{log}");
        assert_eq!(output.status.code(), Some(2), "{log}");
        assert_eq!(
            log.lines().filter(|line| line.starts_with("error")).count(),
            1,
            "{log}"
        );
    }
}

#[test]
fn a_wrong_command_line_shows_the_right_one() {
    let output = vmm().arg("--nonsense").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("unknown argument \"--nonsense\""), "{text}");
    assert!(text.contains("usage: husk-vmm --config FILE"), "{text}");
}
