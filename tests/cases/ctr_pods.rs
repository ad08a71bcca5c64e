//! Pods as a CRI server makes them, with `ctr` writing the annotations: one sandbox, one
//! machine, containers that come and go.

use std::fs;
use std::os::unix::fs::MetadataExt;

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse, StateRequest, StateResponse};
use husk_tests::containerd::Events;
use husk_tests::hold::{self, Hold};
use husk_tests::network::Namespace;
use husk_tests::task_api::TaskApi;
use husk_tests::{Container, Node, Task, process};

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
/// Of a machine: made anew at each boot.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A sandbox with its first container, which does nothing, as CRI's does.
struct Pod(Task);

impl Pod {
    #[track_caller]
    fn run() -> Self {
        Self::run_with(&[])
    }

    #[track_caller]
    fn run_with(annotations: &[&str]) -> Self {
        Self::of(Container::husk(&["sleep", "infinity"]), annotations)
    }

    /// In a namespace that others have made (`network:<path>`).
    #[track_caller]
    fn run_in(namespace: &str) -> Self {
        let first = Container::husk(&["sleep", "infinity"]);
        Self::of(first.with(&["--with-ns", namespace]), &[])
    }

    #[track_caller]
    fn of(first: Container, annotations: &[&str]) -> Self {
        let id = format!("{SANDBOX}={}", first.id());
        let mut first = first.with(&["--null-io", "--annotation", &id]);
        for annotation in [&[&*format!("{KIND}=sandbox")], annotations].concat() {
            first = first.with(&["--annotation", annotation]);
        }
        Self(first.detach())
    }

    /// One more container: `shared` namespaces are the pod's, all others new.
    fn member(&self, shared: &[(&str, &str)], command: &[&str]) -> Container {
        let annotations = [
            format!("{KIND}=container"),
            format!("{SANDBOX}={}", self.0.id()),
        ];
        let mut member = Container::husk(command);
        for annotation in &annotations {
            member = member.with(&["--annotation", annotation]);
        }
        for (kind, file) in shared {
            let namespace = format!("{kind}:/proc/{}/ns/{file}", self.0.pid());
            member = member.with(&["--with-ns", &namespace]);
        }
        member
    }

    /// What a CRI server shares by default.
    fn usual_member(&self, command: &[&str]) -> Container {
        let shared = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
        self.member(&shared, command)
    }
}

/// What a script prints in a container.
#[track_caller]
fn told(task: &Task, script: &str) -> String {
    task.exec(&["sh", "-c", script]).succeeded().text()
}

#[test]
fn the_containers_of_a_pod_share_its_machine_and_what_cri_says() {
    let _node = Node::enter();
    let pod = Pod::run();
    let member = pod.usual_member(&["sleep", "infinity"]);
    let member = member.with(&["--null-io"]).detach();
    // A process of its own stands for it on the host, in the pod's network.
    assert_ne!(member.pid(), pod.0.pid());
    let network = |task: &Task| fs::read_link(format!("/proc/{}/ns/net", task.pid()));
    assert_eq!(
        network(&member).expect("a process"),
        network(&pod.0).expect("a process")
    );
    assert_eq!(process::named("husk-vmm").len(), 1);
    let boot = format!("cat {BOOT}");
    assert_eq!(told(&member, &boot), told(&pod.0, &boot));
    for (kind, shared) in [
        ("ipc", true),
        ("uts", true),
        ("net", true),
        ("pid", false),
        ("mnt", false),
    ] {
        let link = format!("readlink /proc/self/ns/{kind}");
        let same = told(&member, &link) == told(&pod.0, &link);
        assert_eq!(same, shared, "{kind}");
    }
    member.destroy();
    assert_eq!(told(&pod.0, "echo alive"), "alive\n");
    pod.0.destroy();
}

/// The network namespaces of the pids that Create (by containerd's list), State and Connect tell.
#[track_caller]
fn namespaces_of_pids(task: &Task) -> [u64; 3] {
    let api = TaskApi::of(task.id());
    let state = StateRequest {
        id: task.id().into(),
        ..Default::default()
    };
    let state: StateResponse = api.call("State", &state).expect("a state");
    let connect = ConnectRequest {
        id: task.id().into(),
        ..Default::default()
    };
    let connect: ConnectResponse = api.call("Connect", &connect).expect("a connection");
    [task.pid(), state.pid, connect.task_pid].map(|pid| inode(&format!("/proc/{pid}/ns/net")))
}

#[track_caller]
fn inode(path: &str) -> u64 {
    let file = fs::metadata(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    file.ino()
}

#[test]
fn every_pid_that_is_told_is_in_the_pods_network_namespace() {
    let _node = Node::enter();
    let namespace = Namespace::new("pids", "");
    let (path, there) = (namespace.path(), inode(&namespace.path()));
    assert_ne!(there, inode("/proc/self/ns/net"));
    let network = format!("network:{path}");
    let alone = Container::husk(&["sleep", "infinity"])
        .with(&["--null-io", "--with-ns", &network])
        .detach();
    assert_eq!(namespaces_of_pids(&alone), [there; 3]);
    alone.destroy();

    let pod = Pod::run_in(&network);
    assert_eq!(namespaces_of_pids(&pod.0), [there; 3]);
    let members = ["one", "two"].map(|_| {
        let member = pod.usual_member(&["sleep", "infinity"]);
        member.with(&["--null-io"]).detach()
    });
    for member in &members {
        assert_eq!(namespaces_of_pids(member), [there; 3]);
    }
    let [first, second] = members;
    first.destroy();
    assert_eq!(namespaces_of_pids(&second), [there; 3]);
    second.destroy();
    pod.0.destroy();

    // What is told before the start: those who wire a container then have no other.
    let mut hold = Hold::install();
    let container = Container::husk(&["true"])
        .with(&["--with-ns", &network])
        .with(hold::FLAGS);
    let client = container.start();
    hold.wait();
    let held = container.task();
    assert_eq!(namespaces_of_pids(&held), [there; 3]);
    hold.release();
    client.finish().succeeded();
}

#[test]
fn a_pod_may_share_its_processes() {
    let _node = Node::enter();
    let pod = Pod::run();
    let shared = [("network", "net"), ("pid", "pid")];
    let member = pod.member(&shared, &["sleep", "1000"]);
    let member = member.with(&["--null-io"]).detach();
    let commands = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '";
    let seen = told(&member, commands);
    assert!(seen.contains("sleep infinity sleep 1000"), "{seen}");
    // An end of its own: the first container is the init of both.
    member.kill("KILL");
    member.wait();
    assert_eq!(member.delete(), 137);
    assert_eq!(told(&pod.0, "echo alive"), "alive\n");
    pod.0.destroy();
}

#[test]
fn containers_come_and_go_while_the_machine_lives() {
    let _node = Node::enter();
    let pod = Pod::run();
    let vmm = pod.0.pid();
    let mut events = Events::subscribe();
    for code in [0, 3, 0] {
        let script = format!("echo run; exit {code}");
        let member = pod.usual_member(&["sh", "-c", &script]);
        assert_eq!(member.run().ended_with(code).text(), "run\n");
    }
    assert_eq!(pod.0.pid(), vmm);
    // The first container ends; the others keep the machine.
    let member = pod.usual_member(&["sleep", "infinity"]);
    let member = member.with(&["--null-io"]).detach();
    pod.0.destroy();
    assert_eq!(told(&member, "echo alive"), "alive\n");
    let last = format!("/tasks/exit {{\"container_id\":\"{}\"", member.id());
    member.destroy();
    events.wait_for(&last);
    let mut inits = events.tasks();
    inits.retain(|(topic, event)| topic == "/tasks/exit" && event["id"] == event["container_id"]);
    assert_eq!(inits.len(), 5, "{inits:?}");
}

#[test]
fn a_pod_is_sized_by_what_cri_says_of_it() {
    let _node = Node::enter();
    let pod = Pod::run_with(&[
        "io.kubernetes.cri.sandbox-cpu-quota=200000",
        "io.kubernetes.cri.sandbox-cpu-period=100000",
        "io.kubernetes.cri.sandbox-memory=134217728",
    ]);
    assert_eq!(told(&pod.0, "nproc"), "2\n");
    let total = told(&pod.0, "awk '/MemTotal/ { print $2 }' /proc/meminfo");
    let total: u64 = total.trim().parse().expect("a number");
    assert!(
        total > 131_072,
        "128 MiB and what the guest needs: {total} KiB"
    );
    pod.0.destroy();
}

#[test]
fn what_is_not_the_pods_is_refused() {
    let _node = Node::enter();
    let pod = Pod::run();
    let other = Container::husk(&["sleep", "infinity"]);
    let other = other.with(&["--null-io"]).detach();
    for (kind, file) in [("ipc", "ipc"), ("pid", "pid"), ("network", "net")] {
        let namespace = format!("{kind}:/proc/{}/ns/{file}", other.pid());
        let member = pod.member(&[], &["true"]);
        let refused = member.with(&["--with-ns", &namespace]).run();
        refused.failed_saying(&["linux.namespaces", kind]);
    }
    assert_eq!(told(&pod.0, "echo alive"), "alive\n");
    other.destroy();
    pod.0.destroy();
}

#[test]
fn a_container_of_a_pod_that_is_gone_is_refused() {
    let _node = Node::enter();
    let pod = Pod::run();
    let member = pod.member(&[], &["true"]);
    let sandbox = pod.0.id().to_owned();
    pod.0.destroy();
    member.run().failed_saying(&[&sandbox, "remove the pod"]);
}

#[test]
fn a_pod_whose_shim_was_killed_is_cleaned_up_whole() {
    let _node = Node::enter();
    let pod = Pod::run();
    let member = pod.usual_member(&["sleep", "infinity"]);
    let member = member.with(&["--null-io"]).detach();
    let mut events = Events::subscribe();
    for pid in process::named("containerd-shim-rust-v2") {
        process::signal(pid, "KILL");
    }
    for task in [&member, &pod.0] {
        let id = task.id();
        events.wait_for(&format!("/tasks/exit {{\"container_id\":\"{id}\""));
        task.forgotten();
    }
}
