//! Pods that share namespaces with the host: refused, or run by runc's shim where the
//! configuration says so.

use std::fs;

use husk_tests::cri::Cri;
use husk_tests::cri::api::NamespaceMode;
use husk_tests::pod_plan::{namespaces, security};
use husk_tests::{Config, Container, Node, Pod, PodPlan, Runtime, containerd, process};

const HANDOVER: &str = "host_namespaces = \"runc\"\n";

/// A pod whose kinds of namespaces are the host's.
fn sharing(kinds: &[&str]) -> PodPlan {
    let mut shared = namespaces(NamespaceMode::Container);
    for kind in kinds {
        let of = match *kind {
            "network" => &mut shared.network,
            "pid" => &mut shared.pid,
            _ => &mut shared.ipc,
        };
        *of = NamespaceMode::Node.into();
    }
    let plan = PodPlan::new(Runtime::Husk).with_namespaces(shared);
    // A kubelet names no host for a pod in the host's network: it keeps the host's.
    plan.with(|config| {
        if kinds.contains(&"network") {
            config.hostname.clear();
        }
    })
}

fn hosts(file: &str) -> String {
    let path = fs::read_link(file).expect("a namespace of ours");
    format!("{}\n", path.display())
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").expect("the host's kernel")
}

#[test]
fn a_pod_that_shares_the_hosts_namespaces_is_refused_by_their_name() {
    let _node = Node::enter();
    for kind in ["network", "pid", "ipc"] {
        let Err(error) = sharing(&[kind]).try_run() else {
            panic!("a pod with the host's {kind}");
        };
        let text = error.message();
        for word in [kind, "host's", "host_namespaces"] {
            assert!(text.contains(word), "no {word:?} in: {text}");
        }
    }
}

#[test]
fn a_pod_in_the_hosts_network_is_handed_over_with_all_its_containers() {
    let _node = Node::enter();
    let _config = Config::set(HANDOVER);
    let pod = sharing(&["network"]).run();
    for _ in 0..2 {
        let mut plan = pod.plan(&["sh", "-c", "exec sleep infinity"]);
        let namespaces = security(&mut plan).namespace_options.as_mut();
        namespaces.expect("a plan's own").network = NamespaceMode::Node.into();
        let container = pod.start(plan);
        assert_eq!(container.told("uname -r"), release());
        let network = container.told("readlink /proc/self/ns/net");
        assert_eq!(network, hosts("/proc/self/ns/net"));
    }
    assert!(process::named("husk-vmm").is_empty());
    pod.remove();
}

#[test]
fn a_pod_that_sees_the_hosts_processes_is_handed_over() {
    let _node = Node::enter();
    let _config = Config::set(HANDOVER);
    let pod = sharing(&["pid", "ipc"]).run();
    let mut plan = pod.plan(&["sh", "-c", "exec sleep infinity"]);
    security(&mut plan).namespace_options = Some(namespaces(NamespaceMode::Node));
    let container = pod.start(plan);
    let seen = container.told("readlink /proc/self/ns/pid");
    assert_eq!(seen, hosts("/proc/self/ns/pid"));
    pod.remove();
}

#[test]
fn pods_of_both_kinds_run_side_by_side_under_one_handler() {
    let _node = Node::enter();
    let _config = Config::set(HANDOVER);
    let plain = Pod::run(Runtime::Husk);
    let handed_over = sharing(&["network"]).run();
    let container = plain.script("exec sleep infinity");
    assert_ne!(container.told("uname -r"), release());
    assert!(handed_over.is_ready() && plain.is_ready());
    handed_over.remove();
    assert_eq!(container.told("echo alive"), "alive\n");
    plain.remove();
}

#[test]
fn a_pod_that_was_handed_over_outlives_containerd() {
    let _node = Node::enter();
    let _config = Config::set(HANDOVER);
    let mut pod = sharing(&["network"]).run();
    let away = containerd::kill_9();
    away.end();
    pod.cri = Cri::connect();
    assert!(pod.is_ready());
    let container = pod.script("exec sleep infinity");
    assert_eq!(container.told("echo alive"), "alive\n");
    pod.remove();
}

#[test]
fn a_container_of_its_own_is_handed_over_too() {
    let _node = Node::enter();
    let _config = Config::set(HANDOVER);
    let output = Container::husk(&["uname", "-r"])
        .with(&["--net-host"])
        .run();
    assert_eq!(output.succeeded().text(), release());
}

#[test]
fn a_privileged_pod_has_all_rights_in_its_machine_and_no_device_of_the_host() {
    let _node = Node::enter();
    let mut plan = PodPlan::new(Runtime::Husk);
    let security_of_pod = plan.linux().security_context.as_mut();
    security_of_pod.expect("a plan's own").privileged = true;
    let pod = plan.run();
    let mut plan = pod.plan(&["sh", "-c", "exec sleep infinity"]);
    security(&mut plan).privileged = true;
    let container = pod.start(plan);
    let capabilities = container.told("grep CapEff /proc/self/status");
    assert_eq!(capabilities, "CapEff:\t000001ffffffffff\n");
    container.told("mkdir /tmp/m && mount -t tmpfs none /tmp/m && umount /tmp/m");
    assert_eq!(container.told("ls /dev | grep -c '^vd' || :"), "0\n");
    assert_ne!(container.told("uname -r"), release());
    pod.remove();
}
