//! `kubectl exec` and `kubectl attach`: streams of the CRI service.

use husk_tests::{Node, Pod, Runtime};

#[test]
fn an_exec_has_three_streams_and_an_exit_code() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("exec sleep infinity");
        let script = "read line; echo \"got $line\"; echo wrong >&2; exit 5";
        let mut exec = container.exec_streamed(&["sh", "-c", script], false);
        exec.writes(b"something\n");
        assert_eq!(exec.ended(), 5, "{runtime:?}");
        let told = (&exec.stdout[..], &exec.stderr[..]);
        assert_eq!(
            told,
            (&b"got something\n"[..], &b"wrong\n"[..]),
            "{runtime:?}"
        );
        pod.remove();
    });
}

#[test]
fn a_mebibyte_passes_an_exec_both_ways_at_once() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script("exec sleep infinity");
    let bytes: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let head = format!("head -c {}", bytes.len());
    let mut exec = container.exec_streamed(&["sh", "-c", &head], false);
    exec.writes(&bytes);
    assert_eq!(exec.ended(), 0);
    assert!(
        exec.stdout == bytes,
        "{} bytes came back",
        exec.stdout.len()
    );
    pod.remove();
}

#[test]
fn an_exec_on_a_terminal_follows_the_windows_size() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("exec sleep infinity");
        let until = |size: &str| format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 1; done");
        let (first, second) = (until("33 99"), until("40 132"));
        let script = format!("tty; {first}; echo first; {second}; echo second; exit 6");
        let mut exec = container.exec_streamed(&["sh", "-c", &script], true);
        exec.wait_for("/dev/pts/");
        exec.resize(99, 33);
        exec.wait_for("first");
        exec.resize(132, 40);
        exec.wait_for("second");
        assert_eq!(exec.ended(), 6, "{runtime:?}");
        pod.remove();
    });
}

#[test]
fn an_exec_that_cannot_be_run_is_told_with_the_reason() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("exec sleep infinity");
        let told = container.exec_streamed(&["/no/such"], false).failed();
        assert!(told.contains("no such file"), "{runtime:?}: {told}");
        pod.remove();
    });
}

#[test]
fn a_container_can_be_attached_to_left_and_attached_to_again() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let script = "while read line; do echo \"got $line\"; [ $line != end ] || exit 8; done";
        let mut plan = pod.plan(&["sh", "-c", script]);
        plan.stdin = true;
        let container = pod.start(plan);
        let mut attached = container.attach();
        attached.writes(b"one\n");
        attached.wait_for("got one");
        drop(attached);
        let mut attached = container.attach();
        attached.writes(b"end\n");
        attached.wait_for("got end");
        assert_eq!(container.ended().exit_code, 8, "{runtime:?}");
        assert_eq!(
            container.log(),
            ["stdout F got one", "stdout F got end"],
            "{runtime:?}"
        );
        pod.remove();
    });
}
