//! The pod's cgroup on the host, which a kubelet makes: the machine is sized by it, lives in it
//! and is counted in it.

use std::fs;
use std::path::Path;

use husk_tests::cri::api;
use husk_tests::pod_plan::resources;
use husk_tests::{Config, Node, Pod, PodPlan, Runtime, process};

const MIB: i64 = 1 << 20;

/// The cgroup of a process on the host.
#[track_caller]
fn cgroup_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    text.trim().trim_start_matches("0::").to_owned()
}

/// The number after a word in one of the cgroup's files.
#[track_caller]
fn figure(cgroup: &Path, file: &str, word: &str) -> u64 {
    let text = fs::read_to_string(cgroup.join(file)).expect("a file of the cgroup");
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    let number = line.and_then(|rest| rest.trim().parse().ok());
    number.unwrap_or_else(|| panic!("no {word:?} in {text}"))
}

/// A pod with a workload limit as a kubelet states it, in a cgroup of that and the overhead.
#[track_caller]
fn limited_pod(workload: i64, overhead: i64) -> Pod {
    let max = (workload + overhead).to_string();
    let mut plan = PodPlan::new(Runtime::Husk).in_cgroup(&[("memory.max", &max)]);
    plan.linux().resources = Some(api::LinuxContainerResources {
        memory_limit_in_bytes: workload,
        ..Default::default()
    });
    plan.run()
}

#[test]
fn shim_and_machine_live_in_a_leaf_of_the_pods_cgroup() {
    let _node = Node::enter();
    let pod = PodPlan::new(Runtime::Husk).in_cgroup(&[]).run();
    let cgroup = pod.cgroup().expect("its cgroup").to_owned();
    let name = cgroup.strip_prefix("/sys/fs/cgroup").expect("a cgroup");
    let leaf = format!("/{}/{}", name.display(), pod.id());
    assert_eq!(cgroup_of(process::only("husk-vmm")), leaf);
    for shim in process::named("containerd-shim-rust-v2") {
        assert_eq!(cgroup_of(shim), leaf);
    }
    assert!(figure(&cgroup, "memory.stat", "anon ") > 10 << 20);
    pod.stop();
    pod.remove();
    assert!(!cgroup.exists(), "a kubelet could not remove it");
}

#[test]
fn a_machine_is_as_large_as_the_pods_cgroup_allows() {
    let _node = Node::enter();
    let files = [("memory.max", "200M"), ("cpu.max", "150000 100000")];
    let pod = PodPlan::new(Runtime::Husk).in_cgroup(&files).run();
    let container = pod.script("exec sleep infinity");
    assert_eq!(container.told("nproc"), "2\n");
    let total = container.told("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo");
    let total: u64 = total.trim().parse().expect("a number");
    assert!((160..187).contains(&total), "{total} MiB");
    pod.remove();
}

#[test]
fn a_container_that_fills_its_memory_dies_alone() {
    let _node = Node::enter();
    let pod = limited_pod(64 * MIB, 60 * MIB);
    let other = pod.script("exec sleep infinity");
    let mut plan = pod.plan(&["sh", "-c", "tail /dev/zero"]);
    resources(&mut plan).memory_limit_in_bytes = 64 * MIB;
    let ended = pod.start(plan).ended();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(other.told("echo alive"), "alive\n");
    let cgroup = pod.cgroup().expect("its cgroup");
    assert_eq!(
        figure(cgroup, "memory.events", "oom_kill "),
        0,
        "on the host"
    );
    pod.remove();
}

#[test]
fn a_pod_that_fills_all_of_its_memory_is_not_killed_by_the_host() {
    let _node = Node::enter();
    let pod = limited_pod(64 * MIB, 60 * MIB);
    // Without a limit of its own: all the machine has.
    let script = "dd if=/dev/zero of=/dev/shm/fill bs=1M 2>/dev/null; tail /dev/zero";
    let ended = pod.script(script).ended();
    assert_eq!(ended.exit_code, 137, "{ended:?}");
    let cgroup = pod.cgroup().expect("its cgroup");
    assert_eq!(
        figure(cgroup, "memory.events", "oom_kill "),
        0,
        "on the host"
    );
    assert_eq!(
        pod.script("exec sleep infinity").told("echo alive"),
        "alive\n"
    );
    pod.remove();
}

#[test]
fn a_machine_the_host_kills_for_memory_is_told_as_such() {
    let _node = Node::enter();
    let pod = PodPlan::new(Runtime::Husk).in_cgroup(&[]).run();
    let container = pod.script("exec sleep infinity");
    let max = pod.cgroup().expect("its cgroup").join("memory.max");
    // Nothing can be reclaimed from a guest's RAM: the kernel kills.
    fs::write(max, "24M").expect("a limit");
    let ended = container.ended();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    pod.wait_not_ready();
    pod.remove();
}

#[test]
fn a_pod_may_say_its_size_where_that_is_allowed() {
    let _node = Node::enter();
    for (allowed, size) in [(true, "2 1\n"), (false, "1 0\n")] {
        let _config = Config::set(&format!("size_annotations = {allowed}\n"));
        let plan = PodPlan::new(Runtime::Husk).with(|config| {
            let annotations = [("io.husk.vcpus", "2"), ("io.husk.memory", "134217728")];
            let annotations = annotations.map(|(name, value)| (name.into(), value.into()));
            config.annotations.extend(annotations);
        });
        let pod = plan.run();
        let script = "echo $(nproc) $(awk '/MemTotal/ { print ($2 > 128 * 1024) }' /proc/meminfo)";
        let container = pod.script("exec sleep infinity");
        assert_eq!(container.told(script), size, "allowed: {allowed}");
        pod.remove();
    }
}

#[test]
fn a_pod_of_half_a_processor_boots_and_is_held_to_it() {
    let _node = Node::enter();
    let pod = PodPlan::new(Runtime::Husk)
        .in_cgroup(&[("cpu.max", "50000 100000")])
        .run();
    let container = pod.script("echo up; while :; do :; done");
    container.logs("stdout F up");
    assert_eq!(container.told("sleep 5; echo alive"), "alive\n");
    let cgroup = pod.cgroup().expect("its cgroup");
    assert!(figure(cgroup, "cpu.stat", "nr_throttled ") > 20);
    pod.remove();
}
