//! The sandbox API of the shim by itself: the status of every answer at every moment of a
//! pod's life, and the whole life of one, with a container, as containerd would drive it.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ShutdownRequest,
    StartRequest, StartResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::ttrpc::Code;
use husk_tests::cri::api::{self, PodSandboxConfig};
use husk_tests::sandbox_api::{Answer, ID, SandboxShim};
use husk_tests::shim::Bundle;
use husk_tests::{Node, process};
use serde_json::json;

const OK: Code = Code::OK;
const WRONG: Code = Code::FAILED_PRECONDITION;
const NONE: Code = Code::NOT_FOUND;

fn code<T>(answer: Answer<T>) -> Code {
    answer.map_or_else(|refusal| refusal.code, |_| OK)
}

/// The verbs that only ask, in the order of `expected`.
#[track_caller]
fn check(shim: &SandboxShim, moment: &str, expected: [Code; 4]) {
    let asked = [
        ("Platform", code(shim.platform(ID))),
        ("SandboxStatus", code(shim.status(ID))),
        ("PingSandbox", code(shim.ping(ID))),
        ("SandboxMetrics", code(shim.metrics(ID))),
    ];
    for ((verb, answer), expected) in asked.into_iter().zip(expected) {
        assert_eq!(answer, expected, "{moment}: {verb}");
    }
}

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        hostname: "burrow".into(),
        ..Default::default()
    }
}

#[test]
fn every_verb_answers_with_the_right_status_at_every_moment() {
    let _node = Node::enter();
    let shim = SandboxShim::run();
    check(&shim, "before there is one", [NONE; 4]);
    for answer in [
        code(shim.start(ID)),
        code(shim.stop(ID)),
        code(shim.wait(ID)),
    ] {
        assert_eq!(answer, NONE, "before there is one");
    }
    assert_eq!(code(shim.create("another", &pod())), NONE);
    assert_eq!(code(shim.create("../pod", &pod())), Code::INVALID_ARGUMENT);

    assert_eq!(code(shim.create(ID, &pod())), OK);
    assert_eq!(code(shim.create(ID, &pod())), Code::ALREADY_EXISTS);
    check(&shim, "created", [OK, OK, WRONG, WRONG]);
    let status = shim.status(ID).expect("a status");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));

    let started = shim.start(ID).expect("a machine");
    assert_eq!(code(shim.start(ID)), WRONG);
    assert_eq!(code(shim.create(ID, &pod())), Code::ALREADY_EXISTS);
    check(&shim, "running", [OK; 4]);
    let status = shim.status(ID).expect("a status");
    assert_eq!(status.state, "SANDBOX_READY");
    assert_eq!(status.pid, started.pid);
    assert_eq!(status.created_at, started.created_at);
    assert_eq!(started.pid, process::only("husk-vmm"));
    let platform = shim.platform(ID).expect("a platform");
    assert_eq!(platform.platform.os, "linux");
    let metrics = shim.metrics(ID).expect("metrics");
    assert_eq!(metrics.metrics.id, ID);
    assert_eq!(
        metrics.metrics.data.type_url,
        "io.containerd.cgroups.v2.Metrics"
    );
    for verb in ["another", ""] {
        let answers = [
            code(shim.status(verb)),
            code(shim.stop(verb)),
            code(shim.shutdown(verb)),
            code(shim.wait(verb)),
        ];
        assert_eq!(answers, [NONE; 4], "{verb:?}");
    }

    let waiter = shim.waiter();
    assert_eq!(code(shim.stop(ID)), OK);
    let ended = waiter.join().expect("a thread").expect("an end");
    assert_eq!(ended.exit_status, 0);
    assert!(process::named("husk-vmm").is_empty());
    check(&shim, "stopped", [OK, OK, WRONG, WRONG]);
    let status = shim.status(ID).expect("a status");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));
    assert!(status.exited_at.is_some());
    assert_eq!(code(shim.wait(ID)), OK, "as often as one likes");
    assert_eq!(code(shim.stop(ID)), OK, "once more is no error");
    assert_eq!(code(shim.start(ID)), WRONG, "once is enough");

    assert_eq!(code(shim.shutdown(ID)), OK);
    assert!(!Path::new("/run/husk/default").join(ID).exists());
    shim.delete();
}

#[test]
fn what_a_machine_cannot_be_made_for_is_refused_and_the_shim_goes() {
    let _node = Node::enter();
    let host = api::NamespaceOption {
        pid: api::NamespaceMode::Node.into(),
        ..Default::default()
    };
    let linux = |options: Option<api::NamespaceOption>, sysctl: &[(&str, &str)]| PodSandboxConfig {
        linux: Some(api::LinuxPodSandboxConfig {
            security_context: Some(api::LinuxSandboxSecurityContext {
                namespace_options: options,
                ..Default::default()
            }),
            sysctls: sysctl
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            ..Default::default()
        }),
        ..Default::default()
    };
    for (config, expected) in [
        (linux(Some(host), &[]), "pid is NODE"),
        (linux(None, &[("vm.swappiness", "1")]), "vm.swappiness"),
    ] {
        let shim = SandboxShim::run();
        let refusal = shim.create(ID, &config).expect_err("a refusal");
        assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{refusal}");
        assert!(refusal.text.contains(expected), "{refusal}");
        // As containerd does then.
        assert_eq!(code(shim.shutdown(ID)), OK);
        shim.delete();
    }
}

#[test]
fn a_sandbox_that_does_not_boot_has_ended_and_the_shim_goes() {
    let _node = Node::enter();
    let shim = SandboxShim::run();
    let created = shim.create_in(ID, "/run/netns/nowhere", &pod());
    created.expect("a pod");
    let refusal = shim.start(ID).expect_err("no machine");
    assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{refusal}");
    assert!(refusal.text.contains("/run/netns/nowhere"), "{refusal}");
    assert_eq!(shim.wait(ID).expect("an end").exit_status, 137);
    assert_eq!(code(shim.start(ID)), WRONG);
    assert_eq!(code(shim.stop(ID)), OK);
    assert_eq!(code(shim.shutdown(ID)), OK);
    shim.delete();
}

#[test]
fn a_sandbox_whose_machine_dies_has_ended_with_137() {
    let _node = Node::enter();
    let shim = SandboxShim::run();
    shim.create(ID, &pod()).expect("a pod");
    shim.start(ID).expect("a machine");
    let waiter = shim.waiter();
    process::signal(process::only("husk-vmm"), "KILL");
    let ended = waiter.join().expect("a thread").expect("an end");
    assert_eq!(ended.exit_status, 137);
    let status = shim.status(ID).expect("a status");
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    check(&shim, "dead", [OK, OK, WRONG, WRONG]);
    assert_eq!(code(shim.stop(ID)), OK);
    assert_eq!(code(shim.shutdown(ID)), OK);
    shim.delete();
}

#[test]
fn a_sandbox_that_was_never_started_is_stopped_and_shut_down() {
    let _node = Node::enter();
    let shim = SandboxShim::run();
    shim.create(ID, &pod()).expect("a pod");
    assert_eq!(code(shim.stop(ID)), OK);
    assert_eq!(code(shim.wait(ID)), OK);
    assert_eq!(code(shim.start(ID)), WRONG);
    assert_eq!(code(shim.shutdown(ID)), OK);
    shim.delete();
}

/// Runs a container by the task API to its end, and deletes it.
#[track_caller]
fn run_in(shim: &SandboxShim, machine: u32, create: &CreateTaskRequest) {
    let created: CreateTaskResponse = shim.task("Create", create).expect("a container");
    // A thread of the VMM stands for it, in the pod's network.
    let netns = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).expect("a process");
    assert_ne!(created.pid, machine);
    assert_eq!(netns(created.pid), netns(machine));
    let id = || create.id.clone();
    let start = StartRequest {
        id: id(),
        ..Default::default()
    };
    let started = shim.task::<_, StartResponse>("Start", &start);
    started.expect("a start");
    let wait = WaitRequest {
        id: id(),
        ..Default::default()
    };
    let ended: WaitResponse = shim.task("Wait", &wait).expect("an end");
    assert_eq!(ended.exit_status, 0);
    let delete = DeleteRequest {
        id: id(),
        ..Default::default()
    };
    let deleted = shim.task::<_, DeleteResponse>("Delete", &delete);
    deleted.expect("a deletion");
    // containerd tells a shim of version 2 so after each container.
    let shutdown = ShutdownRequest {
        id: id(),
        now: true,
        ..Default::default()
    };
    let done = shim.task::<_, Empty>("Shutdown", &shutdown);
    done.expect("nothing to do");
}

#[test]
fn a_container_of_a_sandbox_runs_in_its_machine_which_outlives_it() {
    let _node = Node::enter();
    let shim = SandboxShim::run();
    shim.create(ID, &pod()).expect("a pod");
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": ID,
    });
    let member = Bundle::with("/annotations", annotations);
    // A client that is no CRI server writes none.
    let plain = Bundle::new();
    let create = |bundle: &Bundle| CreateTaskRequest {
        id: "member".into(),
        bundle: bundle.path().to_string_lossy().into_owned(),
        ..Default::default()
    };
    for bundle in [&member, &plain] {
        let early = shim.task::<_, CreateTaskResponse>("Create", &create(bundle));
        let refusal = early.expect_err("the sandbox does not run");
        assert_eq!(refusal.code, WRONG, "{refusal}");
    }
    let machine = shim.start(ID).expect("a machine").pid;
    for bundle in [&member, &member, &plain] {
        run_in(&shim, machine, &create(bundle));
    }
    assert_eq!(process::only("husk-vmm"), machine, "it stays");
    assert_eq!(code(shim.ping(ID)), OK);
    assert_eq!(code(shim.shutdown(ID)), OK, "without a stop");
    shim.delete();
}

#[test]
fn what_a_killed_shim_left_of_a_sandbox_is_cleaned_up_by_delete() {
    let _node = Node::enter();
    let shim = SandboxShim::run();
    shim.create(ID, &pod()).expect("a pod");
    shim.start(ID).expect("a machine");
    process::signal(process::only("containerd-shim-rust-v2"), "KILL");
    shim.delete();
    assert!(!Path::new("/run/husk/default").join(ID).exists());
    let left = fs::read_dir(shim.bundle()).expect("the bundle").flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["log"], "containerd's own");
}
