//! `husk-vmm` by hand, asked for what cannot be: one clear line, exit code 2, nothing left.

use husk_tests::{Node, Output, Vm, process};
use serde_json::json;

/// Exit code of a refused configuration, as the VMM's README lists it.
const CONFIG: i32 = 2;

/// Runs a machine with one key of its configuration changed.
#[track_caller]
fn run_with(pointer: &str, value: serde_json::Value) -> Output {
    let mut vm = Vm::running("reboot -f");
    let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
    let object = vm.config.pointer_mut(parent).expect("a key that exists");
    object[key] = value;
    vm.run()
}

#[track_caller]
fn refused(output: Output, words: &[&str]) {
    let output = output.ended_with(CONFIG).failed_saying(words);
    let errors = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("error "));
    assert_eq!(errors.count(), 1, "one line expected: {output}");
    assert!(!output.stderr.contains("panicked"), "{output}");
}

#[test]
fn an_unknown_key_is_named() {
    let _node = Node::enter();
    refused(run_with("/vcpu", json!(2)), &["vcpu"]);
}

#[test]
fn no_vcpus_are_refused_with_the_range() {
    let _node = Node::enter();
    refused(run_with("/vcpus", json!(0)), &["`vcpus`", "1 to 254"]);
}

#[test]
fn a_wrong_type_is_refused_by_name() {
    let _node = Node::enter();
    refused(
        run_with("/memory_mib", json!("64")),
        &["VmConfig is not valid", "string \"64\""],
    );
}

#[test]
fn too_little_memory_is_refused_with_the_range() {
    let _node = Node::enter();
    refused(run_with("/memory_mib", json!(1)), &["`memory_mib` is 1"]);
}

#[test]
fn a_missing_kernel_is_named() {
    let _node = Node::enter();
    refused(
        run_with("/kernel/image", json!("/no/kernel")),
        &["/no/kernel"],
    );
}

#[test]
fn a_missing_initramfs_is_named() {
    let _node = Node::enter();
    refused(
        run_with("/kernel/initramfs", json!("/no/initramfs")),
        &["/no/initramfs"],
    );
}

#[test]
fn a_missing_kvm_device_is_named() {
    let _node = Node::enter();
    refused(run_with("/kvm", json!("/no/kvm")), &["/no/kvm"]);
}

#[test]
fn a_kernel_that_is_not_elf_is_refused() {
    let _node = Node::enter();
    refused(
        run_with("/kernel/image", json!("/etc/passwd")),
        &["cannot load the kernel", "`vmlinux`"],
    );
}

#[test]
fn a_truncated_document_is_refused() {
    let _node = Node::enter();
    let vm = Vm::running("reboot -f");
    refused(
        process::run(vm.command_with("{\"vcpus\": 1,")),
        &["VmConfig is not valid"],
    );
}

#[test]
fn a_missing_config_file_is_named() {
    let _node = Node::enter();
    let mut command = std::process::Command::new(husk_tests::vm::VMM);
    command.args(["--config", "/no/vm.json"]);
    refused(process::run(command), &["/no/vm.json"]);
}
