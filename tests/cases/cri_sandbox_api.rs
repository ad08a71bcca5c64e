//! Pods under containerd's CRI service without a pause container: the shim makes their
//! machines by the sandbox API (`sandboxer = "shim"`, containerd 2).

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::cri_pods::{processes_see_each_other, restarts_in_one_machine};
use husk_tests::cri::api;
use husk_tests::pod_plan::{namespaces, resources, security};
use husk_tests::{Node, Pod, PodPlan, Runtime, containerd, ctr, process};

/// Of a machine: made anew at each boot.
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

/// A usual pod, where containerd can have one without a pause container.
#[track_caller]
fn usual() -> Option<Pod> {
    Some(PodPlan::by_sandbox_api()?.run())
}

#[test]
fn a_pod_without_a_pause_container_runs_and_goes_without_a_trace() {
    let _node = Node::enter();
    let Some(pod) = usual() else { return };
    assert!(pod.is_ready());
    let status = pod.status();
    assert!(status.created_at > 0);
    let ip = status.network.expect("a network").ip;
    assert!(ip.starts_with("10."), "{ip}");
    let tasks = ctr(&["-n", "k8s.io", "task", "ls", "-q"]).succeeded();
    assert_eq!(tasks.text(), "", "no task but the containers'");
    process::only("husk-vmm");

    let container = pod.script("echo out; echo err >&2; exit 3");
    let ended = container.ended();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"));
    container.logs("stdout F out");
    container.logs("stderr F err");
    container.remove();
    assert!(pod.is_ready(), "without any container");

    let container = pod.script("exec sleep infinity");
    let answer = container.exec_within(&["sh", "-c", "echo o; echo e >&2; exit 4"], 200);
    let answer = answer.expect("an answer");
    let told = (answer.exit_code, &answer.stdout[..], &answer.stderr[..]);
    assert_eq!(told, (4, &b"o\n"[..], &b"e\n"[..]));
    container.stop(0);
    assert_eq!(container.ended().exit_code, 137);
    pod.stop();
    assert!(!pod.is_ready());
    assert!(process::named("husk-vmm").is_empty());
    pod.remove();
}

#[test]
fn its_containers_share_what_a_pod_shares() {
    let _node = Node::enter();
    let Some(pod) = usual() else { return };
    let [first, second] = [(); 2].map(|()| pod.script("exec sleep infinity"));
    assert_eq!(first.told(BOOT), second.told(BOOT));
    for (kind, shared) in [("ipc", true), ("uts", true), ("net", true), ("pid", false)] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(first.told(&link) == second.told(&link), shared, "{kind}");
    }
    first.told("echo there >/dev/shm/file");
    assert_eq!(second.told("cat /dev/shm/file"), "there\n");
    assert_eq!(second.told("cat /proc/1/comm"), "sleep\n");
    pod.remove();
}

#[test]
fn its_containers_get_what_they_get_from_runc() {
    let _node = Node::enter();
    let Some(ours) = PodPlan::by_sandbox_api() else {
        return;
    };
    let script = "pwd; id -u; id -G; hostname; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
         cat /etc/resolv.conf /etc/hostname /etc/hosts; ls /dev/shm | wc -l; df -k /dev/shm | tail -1 | wc -l; \
         stat -c '%a %F' /dev/shm; cat /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/msgmax; \
         touch /etc/hosts && echo writable; ls -l /etc/hostname | cut -c1-10";
    let told = [PodPlan::new(Runtime::Runc), ours].map(|plan| {
        let pod = plan
            .with(|config| {
                config.hostname = "the-pod".into();
                config.dns_config = Some(api::DnsConfig {
                    servers: vec!["10.9.9.9".into(), "10.9.9.8".into()],
                    searches: vec!["pods.test".into()],
                    options: vec!["ndots:5".into()],
                });
                let linux = config.linux.as_mut().expect("a Linux pod");
                for (name, value) in [("kernel.shm_rmid_forced", "1"), ("kernel.msgmax", "4096")] {
                    linux.sysctls.insert(name.into(), value.into());
                }
            })
            .run();
        let mut plan = pod.plan(&["sh", "-c", script]);
        plan.working_dir = "/tmp".into();
        security(&mut plan).no_new_privs = true;
        let container = pod.start(plan);
        assert_eq!(container.ended().exit_code, 0, "{:?}", container.log());
        let log = container.log().join("\n");
        pod.remove();
        log
    });
    let [runc, husk] = told;
    assert_eq!(husk, runc);
    for expected in ["stdout F the-pod", "nameserver 10.9.9.8", "stdout F 4096"] {
        assert!(husk.contains(expected), "{husk}");
    }
}

#[test]
fn its_processes_see_each_other_if_it_shares_them() {
    let _node = Node::enter();
    let Some(plan) = PodPlan::by_sandbox_api() else {
        return;
    };
    processes_see_each_other(plan, |second| {
        // Process 1 is the guest's, and nobody ends or looks into it.
        let denied = second.exec_within(&["sh", "-c", "kill -9 1; ls /proc/1/root/"], 0);
        assert_ne!(denied.expect("an answer").exit_code, 0);
    });
}

#[test]
fn a_container_that_ended_is_restarted_in_the_same_machine() {
    let _node = Node::enter();
    let Some(pod) = usual() else { return };
    restarts_in_one_machine(pod);
}

#[test]
fn its_machine_is_as_large_as_it_says_and_lives_in_its_cgroup() {
    let _node = Node::enter();
    let Some(plan) = PodPlan::by_sandbox_api() else {
        return;
    };
    let mut plan = plan.in_cgroup(&[("memory.max", "200M")]);
    plan.linux().resources = Some(api::LinuxContainerResources {
        memory_limit_in_bytes: 100 << 20,
        cpu_quota: 150_000,
        cpu_period: 100_000,
        ..Default::default()
    });
    let pod = plan.run();
    let cgroup = pod.cgroup().expect("its cgroup").to_owned();
    let name = cgroup.strip_prefix("/sys/fs/cgroup").expect("a cgroup");
    let leaf = format!("0::/{}/{}", name.display(), pod.id());
    for process in ["husk-vmm", "containerd-shim-rust-v2"] {
        let own = Path::new("/proc").join(process::only(process).to_string());
        let own = fs::read_to_string(own.join("cgroup")).expect("a process");
        assert_eq!(own.trim(), leaf, "{process}");
    }
    let mut plan = pod.plan(&["sh", "-c", "echo up; exec sleep infinity"]);
    resources(&mut plan).memory_limit_in_bytes = 50 << 20;
    let container = pod.start(plan);
    container.logs("stdout F up");
    assert_eq!(container.told("nproc"), "2\n");
    let total = container.told("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo");
    let total: u64 = total.trim().parse().expect("a number");
    assert!((110..135).contains(&total), "{total} MiB");

    let request = api::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id().into(),
    };
    let answer = pod.cri.pod_sandbox_stats(request).expect("statistics");
    let stats = answer.stats.expect("statistics");
    let linux = stats.linux.expect("of Linux");
    let memory = linux.memory.and_then(|memory| memory.usage_bytes);
    assert!(memory.expect("the pod's memory").value > 10 << 20);
    assert_eq!(linux.containers.len(), 1);
    let own = linux.containers[0]
        .memory
        .and_then(|memory| memory.working_set_bytes);
    assert!(own.expect("the container's memory").value < 10 << 20);

    pod.stop();
    assert!(!Path::new("/sys/fs/cgroup").join(&leaf[4..]).exists());
    pod.remove();
    assert!(!cgroup.exists(), "a kubelet could not remove it");
}

#[test]
fn what_ends_its_machine_ends_it_and_leaves_its_cgroup() {
    let _node = Node::enter();
    let Some(plan) = PodPlan::by_sandbox_api() else {
        return;
    };
    let pod = plan.in_cgroup(&[]).run();
    let leaf = pod.cgroup().expect("its cgroup").join(pod.id());
    let container = pod.script("exec sleep infinity");
    process::signal(process::only("husk-vmm"), "KILL");
    assert_eq!(container.ended().exit_code, 137);
    pod.wait_not_ready();
    let deadline = Instant::now() + process::DEADLINE;
    while leaf.exists() {
        assert!(
            Instant::now() < deadline,
            "nobody stops a pod that is not ready"
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    pod.remove();
    let Some(pod) = usual() else { return };
    assert_eq!(
        pod.script("exec sleep infinity").told("echo alive"),
        "alive\n"
    );
    pod.remove();
}

#[test]
fn a_killed_shim_ends_its_pod_and_nothing_stays() {
    let _node = Node::enter();
    let Some(pod) = usual() else { return };
    let container = pod.script("exec sleep infinity");
    process::signal(process::only("containerd-shim-rust-v2"), "KILL");
    container.ended();
    pod.wait_not_ready();
    pod.remove();
}

#[test]
fn it_outlives_containerd() {
    let _node = Node::enter();
    let Some(pod) = usual() else { return };
    let container = pod.script("echo up; exec sleep infinity");
    container.logs("stdout F up");
    let machine = process::only("husk-vmm");
    containerd::kill_9().end();
    assert!(pod.is_ready(), "the pod");
    assert_eq!(container.told("echo alive"), "alive\n");
    assert_eq!(process::only("husk-vmm"), machine);
    let late = pod.script("exit 5");
    assert_eq!(late.ended().exit_code, 5);
    container.stop(0);
    assert_eq!(container.ended().exit_code, 137);
    pod.stop();
    assert!(!pod.is_ready());
    pod.remove();
}

#[test]
fn a_pod_that_asks_for_the_hosts_processes_is_refused() {
    let _node = Node::enter();
    let Some(plan) = PodPlan::by_sandbox_api() else {
        return;
    };
    let host = api::NamespaceOption {
        pid: api::NamespaceMode::Node.into(),
        ..namespaces(api::NamespaceMode::Container)
    };
    let Err(refused) = plan.with_namespaces(host).try_run() else {
        panic!("a pod with the host's processes");
    };
    assert!(refused.message().contains("pid is NODE"), "{refused}");
}
