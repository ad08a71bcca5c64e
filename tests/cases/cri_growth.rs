//! Growth: containers that may use more than their pod's machine was booted with, and memory
//! that goes back to the host.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::cri::api;
use husk_tests::pod::PodContainer;
use husk_tests::pod_plan::resources;
use husk_tests::process::{self, DEADLINE};
use husk_tests::{Node, Pod, PodPlan, Runtime};

const MIB: i64 = 1 << 20;

/// The guest's MemTotal in MiB.
#[track_caller]
fn total(container: &PodContainer) -> i64 {
    let text = container.told("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo");
    text.trim().parse().expect("a number")
}

/// A container of a pod with these limits that does nothing.
#[track_caller]
fn idle<'a>(
    pod: &'a Pod,
    limits: impl FnOnce(&mut api::LinuxContainerResources),
) -> PodContainer<'a> {
    let mut plan = pod.plan(&["sleep", "infinity"]);
    limits(resources(&mut plan));
    pod.start(plan)
}

/// Touches so much memory in a container.
#[track_caller]
fn fill(container: &PodContainer, mib: u32) {
    container.told(&format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1"));
}

fn update(pod: &Pod, container: &PodContainer, linux: api::LinuxContainerResources) {
    let request = api::UpdateContainerResourcesRequest {
        container_id: container.id().into(),
        linux: Some(linux),
        ..Default::default()
    };
    pod.cri
        .update_container_resources(request)
        .expect("an update");
}

/// Host memory that holds the only machine, in MiB.
#[track_caller]
fn resident() -> i64 {
    let status = format!("/proc/{}/status", process::only("husk-vmm"));
    let status = fs::read_to_string(status).expect("the VMM lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<i64>().ok());
    kib.expect("a figure") / 1024
}

/// Waits until a figure is below `most`.
#[track_caller]
fn falls(what: &str, most: i64, figure: impl Fn() -> i64) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let now = figure();
        if now < most {
            eprintln!("{what}: {now} MiB");
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {now}, not below {most}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// An update to so much memory and so many CPUs.
fn limits(mib: i64, cpus: i64) -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        memory_limit_in_bytes: mib * MIB,
        cpu_quota: cpus * 100_000,
        cpu_period: 100_000,
        ..Default::default()
    }
}

/// The processors of the node on which each vCPU of the only machine may run, in order.
#[track_caller]
fn processors() -> Vec<String> {
    let threads = format!("/proc/{}/task", process::only("husk-vmm"));
    let mut found = Vec::new();
    for thread in fs::read_dir(threads).expect("the VMM lives") {
        let thread = thread.expect("a thread").path();
        let read = |file| fs::read_to_string(thread.join(file)).expect("a file of a thread");
        if let Some(vcpu) = read("comm").trim().strip_prefix("vcpu") {
            let status = read("status");
            let list = status
                .lines()
                .find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
            found.push((vcpu.to_owned(), list.expect("a list").trim().to_owned()));
        }
    }
    found.sort();
    found.into_iter().map(|(_, list)| list).collect()
}

#[test]
fn vcpus_run_where_the_containers_cpusets_say() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    assert_eq!(processors(), ["0-1"]);
    let pinned = idle(&pod, |limits| limits.cpuset_cpus = "1".to_owned());
    assert_eq!(processors(), ["1"]);
    assert_eq!(pinned.told("nproc"), "1\n", "the guest counts its own");
    let two = api::LinuxContainerResources {
        cpuset_cpus: "0-1".to_owned(),
        ..limits(64, 2)
    };
    update(&pod, &pinned, two);
    assert_eq!(processors(), ["0", "1"], "one each, the new one too");
    let anywhere = idle(&pod, |_| {});
    assert_eq!(processors(), ["0-1", "0-1"]);
    anywhere.remove();
    assert_eq!(processors(), ["0", "1"]);
    pod.remove();
}

#[test]
fn a_container_gets_its_limits_in_a_pod_that_was_smaller() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let small = idle(&pod, |_| {});
    assert_eq!(small.told("nproc"), "1\n");
    assert!(total(&small) < 64);
    let large = idle(&pod, |limits| {
        limits.memory_limit_in_bytes = 300 * MIB;
        limits.cpu_quota = 150_000;
        limits.cpu_period = 100_000;
    });
    assert_eq!(large.told("nproc"), "2\n");
    assert_eq!(small.told("nproc"), "2\n", "the others have them too");
    assert!((300..350).contains(&total(&large)), "{}", total(&large));
    fill(&large, 290);
    // It dies by its own limit, not by the machine's.
    let ended = large.exec_within(
        &["dd", "if=/dev/zero", "of=/dev/null", "bs=310M", "count=1"],
        0,
    );
    assert_eq!(ended.expect("an answer").exit_code, 137);
    assert_eq!(small.told("echo alive"), "alive\n");
    pod.remove();
}

#[test]
fn an_update_grows_the_machine_before_it_raises_the_limit() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = idle(&pod, |limits| limits.memory_limit_in_bytes = 24 * MIB);
    let before = total(&container);
    assert!(before < 64, "{before}");
    for (mib, least) in [(200, 200), (500, 500), (100, 100)] {
        update(&pod, &container, limits(mib, 2));
        assert!(
            total(&container) >= least,
            "{} for {mib}",
            total(&container)
        );
        assert_eq!(container.told("nproc"), "2\n");
        let limit = container.told("cat /sys/fs/cgroup/memory.max");
        assert_eq!(limit, format!("{}\n", mib * MIB));
    }
    pod.remove();
}

/// As OpenStack's Zun plans: nothing of the pod, shares and memory of each container.
#[test]
fn containers_that_come_one_by_one_with_shares_and_memory_add_up() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let containers: Vec<_> = (0..3)
        .map(|_| {
            idle(&pod, |limits| {
                limits.memory_limit_in_bytes = 256 * MIB;
                limits.cpu_shares = 512;
            })
        })
        .collect();
    assert_eq!(containers[0].told("nproc"), "2\n");
    assert!(total(&containers[0]) >= 3 * 256);
    for container in &containers {
        fill(container, 230);
    }
    pod.remove();
}

#[test]
fn a_machine_never_grows_beyond_its_pods_cgroup() {
    let _node = Node::enter();
    let files = [("memory.max", "200M")];
    let pod = PodPlan::new(Runtime::Husk).in_cgroup(&files).run();
    let container = idle(&pod, |limits| limits.memory_limit_in_bytes = 400 * MIB);
    assert!(total(&container) < 187, "{}", total(&container));
    // The kubelet raises the pod's limit first, then the container's.
    let max = pod.cgroup().expect("its cgroup").join("memory.max");
    fs::write(max, "300M").expect("a limit");
    let linux = api::LinuxContainerResources {
        memory_limit_in_bytes: 250 * MIB,
        ..Default::default()
    };
    update(&pod, &container, linux);
    let now = total(&container);
    assert!((240..287).contains(&now), "{now}");
    pod.remove();
}

#[test]
fn sixty_four_mib_become_as_much_as_the_host_has() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let meminfo = fs::read_to_string("/proc/meminfo").expect("the host's memory");
    let host = meminfo.split_whitespace().nth(1).expect("MemTotal");
    let host = host.parse::<i64>().expect("a number") / 1024;
    let container = idle(&pod, |limits| limits.memory_limit_in_bytes = 4096 * MIB);
    let total = total(&container);
    assert!(total > host.min(4096) - 64, "{total} of {host} MiB");
    fill(&container, 600);
    pod.remove();
}

#[test]
fn memory_that_is_freed_goes_back_to_the_host() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let mut plan = pod.plan(&[
        "sh",
        "-c",
        "{ head -c 500m /dev/zero; echo full >&2; sleep infinity; } | tail -c 501m",
    ]);
    resources(&mut plan).memory_limit_in_bytes = 600 * MIB;
    let filled = pod.start(plan);
    filled.logs("stderr F full");
    let full = resident();
    assert!(full > 500, "{full} MiB");
    filled.stop(0);
    falls("the VMM's memory", full - 450, resident);
    pod.remove();
}

#[test]
fn an_update_to_less_gives_back_what_the_guest_can_spare_and_one_to_more_grows_again() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = idle(&pod, |limits| limits.memory_limit_in_bytes = 24 * MIB);
    let boot = total(&container);
    for _ in 0..2 {
        update(&pod, &container, limits(500, 2));
        assert!(total(&container) >= 500, "{}", total(&container));
        assert_eq!(container.told("nproc"), "2\n");
        // The container may have all of it, also just after some was on its way out.
        fill(&container, 480);
        let full = resident();
        update(&pod, &container, limits(100, 1));
        falls("MemTotal", 200, || total(&container));
        falls("CPUs", 2, || {
            container.told("nproc").trim().parse().expect("a number")
        });
        falls("the VMM's memory", full - 300, resident);
    }
    // Up and down at once, without waiting for the guest in between.
    for (mib, cpus) in [(400, 2), (50, 1), (300, 2), (24, 1), (500, 2)] {
        update(&pod, &container, limits(mib, cpus));
    }
    assert!(total(&container) >= 500, "{}", total(&container));
    assert_eq!(container.told("nproc"), "2\n");
    fill(&container, 480);
    update(&pod, &container, limits(24, 1));
    falls("MemTotal", boot + 130, || total(&container));
    assert!(total(&container) >= boot);
    pod.remove();
}

#[test]
fn what_a_removed_container_might_use_goes_back_and_the_others_keep_theirs() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let stays = idle(&pod, |limits| limits.memory_limit_in_bytes = 150 * MIB);
    let goes = idle(&pod, |limits| {
        limits.memory_limit_in_bytes = 300 * MIB;
        limits.cpu_quota = 200_000;
        limits.cpu_period = 100_000;
    });
    assert!(total(&stays) >= 450);
    fill(&goes, 280);
    goes.stop(0);
    goes.remove();
    falls("MemTotal", 320, || total(&stays));
    falls("CPUs", 2, || {
        stays.told("nproc").trim().parse().expect("a number")
    });
    assert!(total(&stays) >= 150);
    fill(&stays, 140);
    pod.remove();
}
