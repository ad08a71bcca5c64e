//! Zun's CRI driver. It speaks the CRI's v1alpha2, which containerd has up to 1.7.

use husk_tests::cri::{Cri, api};
use husk_tests::ctr::IMAGE;
use husk_tests::network::node;
use husk_tests::{Node, Running, process};

use crate::script;

/// What a script prints in a container.
#[track_caller]
fn told(cri: &Cri, container: &str, script: &str) -> String {
    let answer = cri.exec_sync(api::ExecSyncRequest {
        container_id: container.into(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 0,
    });
    let answer = answer.unwrap_or_else(|error| panic!("ExecSync: {error}"));
    assert_eq!(answer.exit_code, 0, "{script}: {answer:?}");
    String::from_utf8(answer.stdout).expect("text")
}

#[test]
fn a_capsule_is_created_and_deleted() {
    let _node = Node::enter();
    let state = tempfile::tempdir().expect("a place for volumes");
    let state = state.path().to_str().expect("a path in ASCII");
    let mut zun = Running::start(script("capsule.py", &[IMAGE, state]));
    zun.wait_for("Running\n");
    let printed = zun.printed();
    let words: Vec<&str> = printed.split_whitespace().collect();
    let ["created", pod, init, small, large, "Running"] = words[..] else {
        panic!("not the ids of a capsule: {printed}")
    };
    let cri = Cri::connect();

    let request = api::PodSandboxStatusRequest {
        pod_sandbox_id: pod.into(),
        verbose: false,
    };
    let status = cri.pod_sandbox_status(request).expect("the pod");
    let status = status.status.expect("a status");
    assert_eq!(status.state(), api::PodSandboxState::SandboxReady);
    assert_eq!(status.runtime_handler, "rust");
    let address = status.network.expect("a network").ip;
    node(&format!("busybox ping -c 1 -W 20 {address}"));

    // It found its volume, in the machine of the others.
    let request = api::ContainerStatusRequest {
        container_id: init.into(),
        verbose: false,
    };
    let ended = cri.container_status(request).expect("the init container");
    let ended = ended.status.expect("a status");
    assert_eq!(ended.state(), api::ContainerState::ContainerExited);
    assert_eq!(ended.exit_code, 0);
    process::only("husk-vmm");
    let boot = "cat /proc/sys/kernel/random/boot_id";
    assert_eq!(told(&cri, small, boot), told(&cri, large, boot));

    assert_eq!(told(&cri, small, "cat /volume"), "a local volume\n");
    assert_eq!(told(&cri, small, "pwd; echo $NAME"), "/tmp\nsmall\n");
    let limit = "cat /sys/fs/cgroup/memory.max";
    assert_eq!(told(&cri, small, limit), "4194304\n");
    assert_eq!(told(&cri, large, limit), "536870912\n");
    // Three asked for, by shares of them; the node has two.
    assert_eq!(told(&cri, large, "nproc"), "2\n");
    told(&cri, large, "dd if=/dev/zero of=/dev/null bs=200M count=1");

    zun.write(b"delete\n");
    zun.finish().succeeded();
    let pods = cri.list_pod_sandbox(api::ListPodSandboxRequest::default());
    assert_eq!(pods.expect("the pods").items, []);
}
