//! The jail of the VMM, read back from `/proc`, and what containerd is told of it.

use std::fs;
use std::path::{Path, PathBuf};

use husk_tests::{Container, Node, Task, process};

/// A running container and the pid of its VMM.
#[track_caller]
fn sandbox() -> (Task, u32) {
    let task = Container::husk(&["sleep", "infinity"]).detach();
    let vmms = process::named("husk-vmm");
    let [vmm] = vmms[..] else {
        panic!("one VMM expected, found {vmms:?}");
    };
    (task, vmm)
}

fn proc(pid: u32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

#[test]
fn the_vmm_has_namespaces_of_its_own() {
    let _node = Node::enter();
    let (task, vmm) = sandbox();
    for name in ["mnt", "pid", "ipc", "uts", "net"] {
        let of = |pid| fs::read_link(proc(pid, "ns").join(name)).expect("a namespace");
        assert_ne!(of(vmm), of(std::process::id()), "{name}");
    }
    task.destroy();
}

#[test]
fn the_pid_containerd_reports_lives_in_the_containers_network_namespace() {
    let _node = Node::enter();
    let (task, vmm) = sandbox();
    assert_eq!(task.pid(), vmm);
    task.destroy();
}

#[test]
fn the_vmm_sees_nothing_of_the_hosts_file_system() {
    let _node = Node::enter();
    let (task, vmm) = sandbox();
    let root = proc(vmm, "root");
    let mut names: Vec<String> = fs::read_dir(&root)
        .expect("the VMM's root")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with("vsock"))
        .collect();
    names.sort();
    assert_eq!(names, ["proc", "share"]);
    task.destroy();
}

#[test]
fn the_vmm_keeps_only_the_capabilities_that_files_need() {
    let _node = Node::enter();
    let (task, vmm) = sandbox();
    // capabilities(7): CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SETFCAP.
    let allowed: u64 = [0, 1, 2, 3, 4, 6, 7, 31].iter().map(|bit| 1 << bit).sum();
    for entry in fs::read_dir(proc(vmm, "task")).expect("threads").flatten() {
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue; // It has ended.
        };
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .expect("a field")
                .to_owned()
        };
        for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapInh:", "CapAmb:"] {
            let held = u64::from_str_radix(&field(set), 16).expect("a mask");
            assert_eq!(held & !allowed, 0, "{set} {held:x} of {}", field("Name:"));
        }
        assert_eq!(field("NoNewPrivs:"), "1", "{}", field("Name:"));
        assert_eq!(field("Seccomp:"), "2", "{}", field("Name:"));
    }
    task.destroy();
}

#[test]
fn no_descriptor_of_the_vmm_leads_out_of_its_jail() {
    let _node = Node::enter();
    let (task, vmm) = sandbox();
    for entry in fs::read_dir(proc(vmm, "fd"))
        .expect("descriptors")
        .flatten()
    {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let kernel_object = target.starts_with("anon_inode:")
            || target.starts_with("socket:")
            || target.starts_with("pipe:");
        // As seen from its own root, or the two devices it may hold.
        let inside = ["/share", "/proc", "/dev/kvm", "/dev/null"]
            .iter()
            .any(|start| target.starts_with(start));
        assert!(
            kernel_object || inside,
            "{} -> {target}",
            entry.path().display()
        );
    }
    task.destroy();
}

#[test]
fn no_directory_of_the_vmm_leads_to_the_hosts_root() {
    let _node = Node::enter();
    let (task, vmm) = sandbox();
    let mounts = fs::read_to_string(proc(vmm, "mountinfo")).expect("the VMM's mounts");
    let host = fs::read_to_string("/proc/self/mountinfo").expect("the host's mounts");
    let devices = |text: &str, point: &str| {
        text.lines()
            .find(|line| line.split_whitespace().nth(4) == Some(point))
            .and_then(|line| line.split_whitespace().nth(2))
            .map(str::to_owned)
    };
    let root = devices(&host, "/").expect("the host's root");
    for line in mounts.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // proc(5), mountinfo: field 3 is the device, field 4 the root of the mount in it.
        assert!(
            words[2] != root || words[3] != "/",
            "the host's root is mounted: {line}"
        );
    }
    task.destroy();
}

#[test]
fn everything_the_vmm_can_see_on_the_share_is_nodev_and_nosuid() {
    let _node = Node::enter();
    let (task, vmm) = sandbox();
    let mounts = fs::read_to_string(proc(vmm, "mountinfo")).expect("the VMM's mounts");
    let mut seen = 0;
    for line in mounts.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[4].starts_with("/share/") {
            seen += 1;
            let options: Vec<&str> = words[5].split(',').collect();
            for option in ["nodev", "nosuid"] {
                assert!(options.contains(&option), "no {option}: {line}");
            }
        }
    }
    assert!(seen > 0, "the container's root is on the share:\n{mounts}");
    task.destroy();
}
