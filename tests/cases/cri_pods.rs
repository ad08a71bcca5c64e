//! Pods under containerd's CRI service, driven as a kubelet drives them.

use husk_tests::cri::api;
use husk_tests::cri_events::ContainerEvents;
use husk_tests::pod::PodContainer;
use husk_tests::pod_plan::{namespaces, resources, security};
use husk_tests::{Node, Pod, PodPlan, Runtime, process};

/// Of a machine: made anew at each boot.
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

#[test]
fn a_pod_runs_a_container_and_goes_without_a_trace() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        assert!(pod.is_ready(), "{runtime:?}");
        let container = pod.script("echo out; echo err >&2; exit 3");
        let ended = container.ended();
        let told = (ended.exit_code, ended.reason.as_str());
        assert_eq!(told, (3, "Error"), "{runtime:?}");
        // The service takes the time of the start when it is told of it: that may be later.
        assert!(ended.started_at > 0 && ended.finished_at > 0);
        container.logs("stdout F out");
        container.logs("stderr F err");
        container.remove();
        pod.stop();
        assert!(!pod.is_ready(), "{runtime:?}");
        pod.remove();
    });
}

#[test]
fn the_containers_of_a_pod_share_one_machine() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let [first, second] = [(); 2].map(|()| pod.script("exec sleep infinity"));
    assert_eq!(first.told(BOOT), second.told(BOOT));
    process::only("husk-vmm");
    for (kind, shared) in [("ipc", true), ("uts", true), ("net", true), ("pid", false)] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(first.told(&link) == second.told(&link), shared, "{kind}");
    }
    pod.remove();
}

#[test]
fn a_container_that_ended_is_restarted_and_the_machine_stays() {
    let _node = Node::enter();
    restarts_in_one_machine(Pod::run(Runtime::Husk));
}

/// Runs a container that fails, thrice, as a kubelet restarts it.
#[track_caller]
pub fn restarts_in_one_machine(pod: Pod) {
    let machine = process::only("husk-vmm");
    let plan = pod.plan(&["sh", "-c", "echo run; exit 1"]);
    for attempt in 0..3 {
        let mut plan = plan.clone();
        let metadata = plan.metadata.as_mut().expect("its name");
        metadata.attempt = attempt;
        let container = pod.start(plan);
        assert_eq!(container.ended().exit_code, 1);
        // A kubelet keeps the last dead container until the next one runs.
        container.remove();
    }
    assert_eq!(process::only("husk-vmm"), machine);
    assert!(pod.is_ready());
    pod.remove();
}

#[test]
fn init_containers_run_one_after_the_other_and_hand_over_a_volume() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let volume = tempfile::tempdir().expect("a volume");
        let pod = Pod::run(runtime);
        let with_volume = |script: &str| {
            let mut plan = pod.plan(&["sh", "-c", script]);
            plan.mounts.push(api::Mount {
                container_path: "/data".into(),
                host_path: volume.path().to_string_lossy().into_owned(),
                ..Default::default()
            });
            pod.start(plan)
        };
        for n in ["1", "2"] {
            let init = with_volume(&format!("echo {n} >>/data/file"));
            assert_eq!(init.ended().exit_code, 0, "{runtime:?}");
        }
        let main = with_volume("cat /data/file; exec sleep infinity");
        main.logs("stdout F 1");
        main.logs("stdout F 2");
        pod.remove();
    });
}

#[test]
fn a_container_gets_what_its_configuration_says() {
    let _node = Node::enter();
    let script = "pwd; id -u; id -g; id -G; echo $A; hostname; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
         touch /x 2>&1; cat /proc/self/oom_score_adj; cat /etc/resolv.conf; wc -c </etc/hosts; ls /dev/shm | wc -l; \
         ls /proc/sys /sys >/dev/null; df /dev/shm | tail -1 | wc -l; cat /etc/hostname";
    let told = Runtime::both(|runtime| {
        let pod = PodPlan::new(runtime)
            .with(|config| {
                config.hostname = "the-pod".into();
                config.dns_config = Some(api::DnsConfig {
                    servers: vec!["10.9.9.9".into()],
                    searches: vec!["pods.test".into()],
                    options: vec!["ndots:5".into()],
                });
            })
            .run();
        let mut plan = pod.plan(&["sh", "-c"]);
        plan.args = vec![script.into()];
        plan.working_dir = "/tmp".into();
        plan.envs = vec![api::KeyValue {
            key: "A".into(),
            value: "b c".into(),
        }];
        resources(&mut plan).oom_score_adj = 500;
        let security = security(&mut plan);
        security.run_as_user = Some(api::Int64Value { value: 1000 });
        security.run_as_group = Some(api::Int64Value { value: 29 });
        security.supplemental_groups = vec![7, 8];
        security.readonly_rootfs = true;
        security.no_new_privs = true;
        security.seccomp = Some(api::SecurityProfile {
            profile_type: api::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
        let container = pod.start(plan);
        assert_eq!(container.ended().exit_code, 0, "{runtime:?}");
        container.log().join("\n")
    });
    let [runc, husk] = told;
    assert_eq!(runc, husk);
    assert!(
        husk.contains("stdout F the-pod") && husk.contains("nameserver 10.9.9.9"),
        "{husk}"
    );
}

#[test]
fn processes_of_a_pod_see_each_other_if_it_shares_them() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        processes_see_each_other(PodPlan::new(runtime), |second| {
            assert_eq!(second.told("cat /proc/1/comm"), "sleep\n", "{runtime:?}");
        });
    });
}

/// Runs two containers in a pod that shares its processes, and ends the first. `first_process`
/// looks at process 1 by the second.
#[track_caller]
pub fn processes_see_each_other(plan: PodPlan, first_process: impl FnOnce(&PodContainer)) {
    let shared = namespaces(api::NamespaceMode::Pod);
    let pod = plan.with_namespaces(shared.clone()).run();
    let member = |script: &str| {
        let mut plan = pod.plan(&["sh", "-c", script]);
        security(&mut plan).namespace_options = Some(shared.clone());
        pod.start(plan)
    };
    let first = member("sleep 12345 & exec sleep 23456");
    let second = member("exec sleep infinity");
    let seen = second.told("cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert!(seen.contains("sleep 12345"), "{seen}");
    first_process(&second);
    first.stop(0);
    assert_eq!(second.told("echo alive"), "alive\n");
    // Killed with it, which takes its time. The pattern does not match itself.
    let seen = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep [1]2345'";
    second.told(&format!("while {seen}; do sleep 1; done"));
    pod.remove();
}

#[test]
fn a_debug_container_sees_the_processes_of_its_target() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let target = pod.script("exec sleep 12345");
        let other = pod.script("exec sleep 54321");
        let mut plan = pod.plan(&["sleep", "infinity"]);
        security(&mut plan).namespace_options = Some(api::NamespaceOption {
            target_id: target.id().into(),
            ..namespaces(api::NamespaceMode::Target)
        });
        let debugger = pod.start(plan);
        let seen = debugger.told("cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
        assert!(seen.contains("sleep 12345"), "{runtime:?}: {seen}");
        assert!(!seen.contains("sleep 54321"), "{runtime:?}: {seen}");
        debugger.stop(0);
        assert_eq!(target.told("echo alive"), "alive\n", "{runtime:?}");
        drop(other);
        pod.remove();
    });
}

#[test]
fn a_container_is_stopped_in_its_own_time_or_killed() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let gentle = pod.script("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 1; done");
        gentle.logs("stdout F up");
        gentle.stop(60);
        assert_eq!(gentle.ended().exit_code, 7, "{runtime:?}");
        gentle.logs("stdout F bye");
        let stubborn = pod.script("trap '' TERM; echo up; while :; do sleep 1; done");
        stubborn.logs("stdout F up");
        stubborn.stop(1);
        assert_eq!(stubborn.ended().exit_code, 137, "{runtime:?}");
        // Once more is no error.
        stubborn.stop(1);
        pod.remove();
    });
}

#[test]
fn a_probe_has_an_exit_code_and_a_time_limit() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("exec sleep infinity");
        let answer = container.exec_within(&["sh", "-c", "echo o; echo e >&2; exit 4"], 200);
        let answer = answer.expect("an answer");
        let told = (answer.exit_code, &answer.stdout[..], &answer.stderr[..]);
        assert_eq!(told, (4, &b"o\n"[..], &b"e\n"[..]), "{runtime:?}");
        let late = container.exec_within(&["sleep", "12345"], 2);
        let error = late.expect_err("a limit").message().to_owned();
        assert!(
            error.contains("timeout 2s exceeded"),
            "{runtime:?}: {error}"
        );
        let seen = container.told("ps");
        assert!(!seen.contains("12345"), "{runtime:?}: {seen}");
        let missing = container.exec_within(&["/no/such"], 200);
        let error = missing.expect_err("no program").message().to_owned();
        assert!(error.contains("no such file"), "{runtime:?}: {error}");
        pod.remove();
    });
}

#[test]
fn a_log_goes_on_in_a_new_file_when_it_is_reopened() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let script = "echo old; until [ -e /go ]; do sleep 1; done; echo new; exec sleep infinity";
        let container = pod.script(script);
        container.logs("stdout F old");
        container.rotate_log();
        container.told(">/go");
        container.logs("stdout F new");
        assert_eq!(container.log(), ["stdout F new"], "{runtime:?}");
        pod.remove();
    });
}

#[test]
fn what_ends_the_machine_ends_the_pod_and_a_new_one_runs() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script("exec sleep infinity");
    process::signal(process::only("husk-vmm"), "KILL");
    let ended = container.ended();
    assert_eq!(ended.exit_code, 137);
    pod.wait_not_ready();
    pod.remove();
    let pod = Pod::run(Runtime::Husk);
    assert_eq!(
        pod.script("exec sleep infinity").told("echo alive"),
        "alive\n"
    );
    pod.remove();
}

#[test]
fn pods_and_containers_are_listed_with_their_state() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script("exec sleep infinity");
    let pods = || {
        let request = api::ListPodSandboxRequest::default();
        let listed = pod.cri.list_pod_sandbox(request).expect("a list");
        let listed = listed.items.into_iter();
        let found =
            listed.map(|item| (item.id.clone(), item.runtime_handler.clone(), item.state()));
        found.collect::<Vec<_>>()
    };
    let containers = || {
        let request = api::ListContainersRequest::default();
        let listed = pod.cri.list_containers(request).expect("a list");
        let listed = listed.containers.into_iter();
        let found = listed.map(|item| (item.id.clone(), item.pod_sandbox_id.clone(), item.state()));
        found.collect::<Vec<_>>()
    };
    let (id, member) = (pod.id().to_owned(), container.id().to_owned());
    let handler = Runtime::Husk.handler().to_owned();
    let (ready, running) = (
        api::PodSandboxState::SandboxReady,
        api::ContainerState::ContainerRunning,
    );
    assert_eq!(pods(), [(id.clone(), handler.clone(), ready)]);
    assert_eq!(containers(), [(member.clone(), id.clone(), running)]);
    pod.stop();
    let gone = api::PodSandboxState::SandboxNotready;
    assert_eq!(pods(), [(id.clone(), handler, gone)]);
    assert_eq!(
        containers(),
        [(member, id, api::ContainerState::ContainerExited)]
    );
    drop(container);
    pod.remove();
}

#[test]
fn what_becomes_of_a_pod_and_its_container_is_told_as_with_runc() {
    let _node = Node::enter();
    let events = ContainerEvents::listen();
    let [runc, husk] = Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("exit 3");
        container.ended();
        let ids = [pod.id().to_owned(), container.id().to_owned()];
        container.remove();
        pod.remove();
        events.of(&ids, &ids[0])
    });
    assert_eq!(husk, runc);
    let (first, last) = (husk.first(), husk.last());
    assert_eq!(
        first,
        Some(&(0, api::ContainerEventType::ContainerCreatedEvent))
    );
    assert_eq!(
        last,
        Some(&(0, api::ContainerEventType::ContainerDeletedEvent))
    );
}
