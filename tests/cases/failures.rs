//! Something dies: a clear error, one exit event, nothing left.

use std::fs;
use std::path::Path;
use std::time::Instant;

use husk_tests::containerd::Events;
use husk_tests::{Config, Container, Node, Running, process};

/// Kills every process of that name; there must be one.
#[track_caller]
fn kill_9(name: &str) {
    process::signal(process::only(name), "KILL");
}

/// A container in the foreground that has said `ready`.
#[track_caller]
fn ready(container: &Container) -> Running {
    let mut running = container.start();
    running.wait_for("ready");
    running
}

/// Moves a file away for as long as it lives.
struct Away<'a>(&'a Path);

impl<'a> Away<'a> {
    fn new(path: &'a str) -> Self {
        let path = Path::new(path);
        fs::rename(path, path.with_extension("away")).expect("a file to move away");
        Self(path)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        fs::rename(self.0.with_extension("away"), self.0).expect("the file moved away");
    }
}

#[test]
fn a_killed_vmm_ends_its_container_once_with_137() {
    let node = Node::enter();
    let events = Events::subscribe();
    let running = ready(&Container::script("echo ready; sleep 1000"));
    kill_9("husk-vmm");
    running.finish().ended_with(137);
    assert_eq!(events.one_exit(), 137);
    node.log_with("VMM");
}

/// As whoever ends all processes of a host does it, or a pod by the pid that is told.
#[test]
fn a_vmm_that_is_asked_to_end_does_so() {
    let _node = Node::enter();
    let events = Events::subscribe();
    let running = ready(&Container::script("echo ready; sleep 1000"));
    process::signal(process::only("husk-vmm"), "TERM");
    running.finish().ended_with(137);
    assert_eq!(events.one_exit(), 137);
}

#[test]
fn a_killed_shim_takes_its_machine_along() {
    let _node = Node::enter();
    let mut events = Events::subscribe();
    // Without streams: of a task that is lost, ctr leaves the fifos behind.
    let task = Container::husk(&["sleep", "infinity"])
        .with(&["--null-io"])
        .detach();
    let vmm = task.pid();
    kill_9("containerd-shim-rust-v2");
    let deadline = Instant::now() + process::DEADLINE;
    assert!(process::wait_for_exit(vmm, deadline), "the VMM lives on");
    events.wait_for("/tasks/exit");
    assert_eq!(events.one_exit(), 137);
    task.forgotten();
}

#[test]
fn a_panic_of_the_guests_kernel_is_reported_with_its_text() {
    let node = Node::enter();
    let events = Events::subscribe();
    // Told to by its input: a guest gone at once would take "ready" along.
    let script = "echo ready; read go; echo c >/proc/sysrq-trigger; sleep 1000";
    let mut running = ready(&Container::script(script).with(&["--privileged"]));
    running.write(b"go\n");
    running.finish().ended_with(137);
    assert_eq!(events.one_exit(), 137);
    node.log_with("Kernel panic");
}

#[test]
fn a_reset_from_inside_ends_the_container_once() {
    let _node = Node::enter();
    let events = Events::subscribe();
    let script = "echo ready; read go; echo b >/proc/sysrq-trigger; sleep 1000";
    let mut running = ready(&Container::script(script).with(&["--privileged"]));
    running.write(b"go\n");
    running.finish().ended_with(137);
    assert_eq!(events.one_exit(), 137);
}

#[test]
fn a_workload_out_of_memory_is_killed_and_its_machine_goes_on() {
    let _node = Node::enter();
    let script = "sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'; echo \"child $?\"";
    let output = Container::script(script).run().succeeded();
    assert_eq!(output.text(), "child 137\n");
}

#[test]
fn a_missing_kernel_is_named() {
    let _node = Node::enter();
    let _config = Config::set("kernel = \"/no/kernel\"\n");
    Container::husk(&["true"])
        .run()
        .failed_saying(&["/no/kernel", "`kernel`"]);
}

#[test]
fn a_missing_vmm_is_named() {
    let _node = Node::enter();
    let _config = Config::set("vmm = \"/no/vmm\"\n");
    Container::husk(&["true"])
        .run()
        .failed_saying(&["/no/vmm", "`vmm`"]);
}

#[test]
fn a_missing_kvm_device_is_named() {
    let _node = Node::enter();
    let _kvm = Away::new("/dev/kvm");
    Container::husk(&["true"])
        .run()
        .failed_saying(&["/dev/kvm"]);
}

#[test]
fn an_initramfs_without_an_agent_is_reported() {
    let _node = Node::enter();
    let _config = Config::set("initramfs = \"/usr/local/lib/node/busybox.tar\"\n");
    Container::husk(&["true"])
        .run()
        .failed_saying(&["kernel panicked"]);
}

#[test]
fn an_unknown_key_in_the_configuration_is_named() {
    let _node = Node::enter();
    let _config = Config::set("log_level = \"info\"\nkernal = \"/vmlinux\"\n");
    Container::husk(&["true"])
        .run()
        .failed_saying(&["/etc/husk/config.toml, line 2", "kernal"]);
}

#[test]
fn a_wrong_type_in_the_configuration_is_named() {
    let _node = Node::enter();
    let _config = Config::set("default_memory_mib = \"much\"\n");
    Container::husk(&["true"])
        .run()
        .failed_saying(&["/etc/husk/config.toml, line 1", "much"]);
}

#[test]
fn a_failed_start_does_not_spoil_the_next() {
    let _node = Node::enter();
    let container = Container::husk(&["echo", "well"]);
    {
        let _kvm = Away::new("/dev/kvm");
        container.run().failed_saying(&["/dev/kvm"]);
    }
    assert_eq!(container.run().succeeded().text(), "well\n");
}
