//! Bytes between pods, ours and runc's: they arrive as they were sent.

use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::pod::PodContainer;
use husk_tests::process::DEADLINE;
use husk_tests::{Node, Pod, PodPlan, Runtime};

/// Sends so many MiB over TCP from one container to an address of the other. Each is numbered:
/// none can stand for another.
#[track_caller]
fn send(from: &PodContainer<'_>, to: &PodContainer<'_>, address: &str, mebibytes: usize) {
    // Its input stays open: nc ends with the first side that is done.
    to.told(
        ": >/received; (tail -f /dev/null | nc -l -p 7000 | sha256sum >/received) >/dev/null 2>&1 &
        until netstat -ltn | grep -q ':7000 '; do sleep 0.1; done",
    );
    let data = format!("for n in $(seq {mebibytes}); do echo $n; cat /blob; done");
    let sent = from.told(&format!(
        "head -c 1048576 /dev/urandom >/blob; ({data}) | sha256sum; ({data}) | nc {address} 7000"
    ));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let received = to.told("cat /received");
        if received == sent {
            return;
        }
        assert!(Instant::now() < deadline, "{address}: {received} of {sent}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Sends so many MiB by each family of addresses from one to another of three pods: ours, ours
/// and runc's.
#[track_caller]
fn between_pods(mebibytes: [usize; 2], ways: &[(usize, usize)]) {
    let pods = [Runtime::Husk, Runtime::Husk, Runtime::Runc];
    let pods = pods.map(|runtime| PodPlan::new(runtime).on_both_families().run());
    let addresses = pods.each_ref().map(Pod::addresses);
    let containers = pods.each_ref().map(|pod| pod.script("exec sleep infinity"));
    for (family, mebibytes) in mebibytes.into_iter().enumerate() {
        for (from, to) in ways.iter().copied() {
            let address = &addresses[to][family];
            send(&containers[from], &containers[to], address, mebibytes);
        }
    }
    drop(containers);
    for pod in pods {
        pod.remove();
    }
}

#[test]
fn what_pods_of_both_runtimes_send_arrives_as_it_was() {
    let _node = Node::enter();
    between_pods([8, 1], &[(0, 1), (0, 2), (2, 0)]);
}

#[test]
#[ignore = "full"]
fn a_quarter_of_a_gibibyte_arrives_as_it_was() {
    let _node = Node::enter();
    between_pods([256, 16], &[(0, 1), (1, 0), (0, 2), (2, 0)]);
}

/// Connects so many times, one after the other, to a server that says one word.
#[track_caller]
fn short_connections(runtime: Runtime, count: usize) {
    let pod = Pod::run(runtime);
    let container = pod.script("exec sleep infinity");
    container.told("nc -ll -p 7001 -e echo served >/dev/null 2>&1 &");
    container.told("until netstat -ltn | grep -q ':7001 '; do sleep 0.1; done");
    let address = format!("{}:7001", pod.addresses()[0]);
    for nth in 0..count {
        let mut stream = TcpStream::connect(&address).expect("a server");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        let told = read.map(|_| &answer[..]);
        assert!(matches!(told, Ok("served\n")), "{nth}: {told:?}");
    }
    pod.remove();
}

#[test]
#[ignore = "full"]
fn a_thousand_short_connections_are_all_served() {
    let _node = Node::enter();
    Runtime::both(|runtime| short_connections(runtime, 1000));
}
