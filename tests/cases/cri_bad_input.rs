//! What a kubelet should not ask for: answered as with runc, and nobody else is disturbed.

use husk_tests::cri::{Code, api};
use husk_tests::pod_plan::resources;
use husk_tests::{Node, Pod, PodPlan, Runtime};

const MIB: i64 = 1 << 20;

/// By Create with containerd 1.7, and 2.1 by Start.
#[test]
fn a_container_for_a_pod_that_was_stopped_is_refused() {
    let _node = Node::enter();
    let [runc, husk] = Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        pod.stop();
        let refusal = match pod.try_create(pod.plan(&["true"])) {
            Err(error) => ("Create", error.code()),
            Ok(container) => {
                let error = container.start().expect_err("a container without a pod");
                ("Start", error.code())
            }
        };
        pod.remove();
        refusal
    });
    assert_eq!(husk, runc);
}

#[test]
fn a_pod_is_stopped_and_removed_again_without_an_error() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let pod_sandbox_id = pod.id().to_owned();
    pod.stop();
    pod.stop();
    let cri = husk_tests::cri::Cri::connect();
    pod.remove();
    let request = api::RemovePodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    };
    cri.remove_pod_sandbox(request).expect("nothing to remove");
    let request = api::PodSandboxStatusRequest {
        pod_sandbox_id,
        verbose: false,
    };
    let error = cri.pod_sandbox_status(request).expect_err("no such pod");
    assert_eq!(error.code(), Code::NotFound);
}

#[test]
fn a_pod_of_a_name_that_is_taken_is_refused_and_the_first_goes_on() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script("exec sleep infinity");
    let same = PodPlan::new(Runtime::Husk).with(|config| {
        config.metadata = pod.status().metadata;
    });
    let Err(error) = same.try_run() else {
        panic!("two pods of one name");
    };
    assert!(error.message().contains("reserved"), "{error}");
    assert_eq!(container.told("echo alive"), "alive\n");
    pod.remove();
}

#[test]
fn absurd_limits_are_accepted_as_with_runc() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        for (memory, quota) in [(7 << 40, 0), (0, 1_000_000_000), (16 * MIB, 1000)] {
            let mut plan = pod.plan(&["true"]);
            let limits = resources(&mut plan);
            limits.memory_limit_in_bytes = memory;
            (limits.cpu_quota, limits.cpu_period) = (quota, 100_000);
            let ended = pod.start(plan).ended();
            assert_eq!(
                ended.exit_code, 0,
                "{runtime:?}, {memory} bytes, quota {quota}"
            );
        }
        pod.remove();
    });
}

#[test]
fn a_pod_with_absurd_limits_has_the_machine_there_can_be() {
    let _node = Node::enter();
    for (memory, quota) in [(4 * MIB, 100), (7 << 40, 1_000_000_000)] {
        let mut plan = PodPlan::new(Runtime::Husk);
        plan.linux().resources = Some(api::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        });
        let pod = plan.run();
        let container = pod.script("exec sleep infinity");
        let cpus: u32 = container.told("nproc").trim().parse().expect("a number");
        assert!(
            (1..=2).contains(&cpus),
            "{memory} bytes, quota {quota}: {cpus}"
        );
        pod.remove();
    }
}

#[test]
fn a_container_of_4_mib_dies_alone() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let sibling = pod.script("exec sleep infinity");
    let mut plan = pod.plan(&["sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done"]);
    resources(&mut plan).memory_limit_in_bytes = 4 * MIB;
    let ended = pod.start(plan).ended();
    assert_eq!((ended.exit_code, &ended.reason[..]), (137, "OOMKilled"));
    assert_eq!(sibling.told("echo alive"), "alive\n");
    pod.remove();
}
