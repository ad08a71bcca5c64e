//! What a kubelet learns of a container's use, and how it changes what may be used.

use std::fs;

use husk_tests::cri::{UpdatePodSandboxResourcesRequest, api};
use husk_tests::pod_plan::resources;
use husk_tests::{Node, Pod, PodPlan, Runtime};

const MIB: u64 = 1 << 20;

/// The processor time in nanoseconds and the working set in bytes of a container's statistics.
#[track_caller]
fn usage(pod: &Pod, container_id: &str) -> (u64, u64) {
    let request = api::ContainerStatsRequest {
        container_id: container_id.into(),
    };
    let answer = pod.cri.container_stats(request).expect("statistics");
    let stats = answer.stats.expect("statistics");
    let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds);
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
    let [cpu, memory] = [cpu, memory].map(|figure| figure.expect("a figure").value);
    assert!(cpu > 0);
    (cpu, memory)
}

/// The bytes a container's statistics call its working set.
#[track_caller]
fn working_set(pod: &Pod, container_id: &str) -> u64 {
    usage(pod, container_id).1
}

#[test]
fn a_containers_statistics_are_its_own_and_as_runcs() {
    let _node = Node::enter();
    let [runc, husk] = Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let fill = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=20 2>/dev/null; echo up; exec sleep infinity";
        let filled = pod.script(fill);
        filled.logs("stdout F up");
        let idle = pod.script("echo up; exec sleep infinity");
        idle.logs("stdout F up");
        let sizes = [working_set(&pod, filled.id()), working_set(&pod, idle.id())];
        let list = pod
            .cri
            .list_container_stats(api::ListContainerStatsRequest::default());
        assert_eq!(list.expect("statistics").stats.len(), 2, "{runtime:?}");
        pod.remove();
        sizes
    });
    for ((runc, husk), least) in runc.into_iter().zip(husk).zip([20 * MIB, 0]) {
        assert!(
            husk >= least && husk.abs_diff(runc) < 2 * MIB,
            "{husk}, runc {runc}"
        );
    }
}

#[test]
fn a_containers_statistics_are_what_its_cgroup_says() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script(
        "dd if=/dev/zero of=/dev/shm/fill bs=1M count=30 2>/dev/null; echo up; exec sleep infinity",
    );
    container.logs("stdout F up");
    let number = |script: &str| -> u64 { container.told(script).trim().parse().expect(script) };
    let time = || 1000 * number("awk '/^usage_usec/ { print $2 }' /sys/fs/cgroup/cpu.stat");
    let before = time();
    let (cpu, memory) = usage(&pod, container.id());
    assert!((before..=time()).contains(&cpu), "{before}, then {cpu}");
    let current = number("cat /sys/fs/cgroup/memory.current");
    let unused = number("awk '/^inactive_file/ { print $2 }' /sys/fs/cgroup/memory.stat");
    let set = current - unused;
    assert!(memory.abs_diff(set) < set / 20, "{memory}, should be {set}");
    pod.remove();
}

#[test]
fn a_pods_statistics_are_its_cgroups_and_hold_its_containers() {
    let _node = Node::enter();
    let pod = PodPlan::new(Runtime::Husk).in_cgroup(&[]).run();
    let container = pod.script("echo up; exec sleep infinity");
    container.logs("stdout F up");
    let request = api::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id().into(),
    };
    let answer = pod.cri.pod_sandbox_stats(request).expect("statistics");
    let linux = answer
        .stats
        .and_then(|stats| stats.linux)
        .expect("of Linux");
    let memory = linux.memory.and_then(|memory| memory.usage_bytes);
    let memory = memory.expect("the pod's memory").value;
    let file = pod.cgroup().expect("its cgroup").join("memory.current");
    let current = fs::read_to_string(file).expect("what the host counts");
    let current: u64 = current.trim().parse().expect("bytes");
    assert!(
        memory.abs_diff(current) < current / 20,
        "{memory}, should be {current}"
    );
    assert_eq!(linux.containers.len(), 1);
    pod.remove();
}

#[test]
fn a_limit_is_changed_while_the_container_runs() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let mut plan = pod.plan(&["sleep", "infinity"]);
        resources(&mut plan).memory_limit_in_bytes = 24 << 20;
        let container = pod.start(plan);
        let limits = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
        assert_eq!(
            container.told(limits),
            "25165824\nmax 100000\n",
            "{runtime:?}"
        );
        let linux = api::LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..Default::default()
        };
        let updated = pod
            .cri
            .update_container_resources(api::UpdateContainerResourcesRequest {
                container_id: container.id().into(),
                linux: Some(linux),
                ..Default::default()
            });
        updated.expect("an update");
        assert_eq!(
            container.told(limits),
            "33554432\n50000 100000\n",
            "{runtime:?}"
        );
        pod.remove();
    });
}

/// containerd 1.7 does not know it; one that does changes nothing by it that a runtime is told.
#[test]
fn an_update_of_a_whole_pod_is_answered_as_with_runc() {
    let _node = Node::enter();
    let [runc, husk] = Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("echo up; exec sleep infinity");
        container.logs("stdout F up");
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id().into(),
            overhead: None,
            resources: Some(api::LinuxContainerResources {
                memory_limit_in_bytes: 100 << 20,
                cpu_quota: 50_000,
                cpu_period: 100_000,
                ..Default::default()
            }),
        };
        let answer = pod.cri.update_pod_sandbox_resources(request);
        assert_eq!(container.told("echo alive"), "alive\n", "{runtime:?}");
        pod.remove();
        answer.map_err(|status| status.code())
    });
    assert_eq!(husk, runc);
}

/// Which of these a containerd has depends on its version, and not on the runtime.
#[test]
fn a_kubelets_rarer_questions_are_answered_as_with_runc() {
    let _node = Node::enter();
    let [runc, husk] = Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("echo up; exec sleep infinity");
        container.logs("stdout F up");
        let descriptors = pod.cri.list_metric_descriptors(Default::default());
        let metrics = pod.cri.list_pod_sandbox_metrics(Default::default());
        let metrics = metrics.map(|answer| answer.pod_metrics.len());
        pod.remove();
        (
            descriptors.map_err(|status| status.code()),
            metrics.map_err(|status| status.code()),
        )
    });
    assert_eq!(husk, runc);
}
