//! `kubectl port-forward`: the CRI service dials localhost in the pod's network namespace, and
//! what is dialled there reaches a server in the guest.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::network::{Namespace, dial, told};
use husk_tests::pod::PodContainer;
use husk_tests::process::{self, DEADLINE};
use husk_tests::{Node, Pod, Running, Runtime};

const MIB: usize = 1 << 20;

/// Starts servers in the background, and waits until each listens.
#[track_caller]
fn serve(container: &PodContainer<'_>, servers: &[(u16, &str)]) {
    for (port, server) in servers {
        container.told(&format!("{server} >/dev/null 2>&1 &"));
        let listens = format!("until netstat -ltn | grep -q ':{port} '; do sleep 0.1; done");
        container.told(&listens);
    }
}

/// Bytes that are nowhere the same.
#[track_caller]
fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let source = fs::File::open("/dev/urandom").expect("random bytes");
    (&source).read_exact(&mut bytes).expect("random bytes");
    bytes
}

/// Sends 8 MiB so many times, and the end, to a server that sends them back; both at once.
#[track_caller]
fn go_and_come_back(stream: &TcpStream, times: usize) {
    let bytes = random(8 * MIB);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = stream;
            for _ in 0..times {
                writer.write_all(&bytes).expect("a reader");
            }
            stream.shutdown(Shutdown::Write).expect("an end");
        });
        let mut reader = stream;
        let (mut buffer, mut seen) = (vec![0; MIB / 4], 0);
        loop {
            let expected = &bytes[seen % bytes.len()..];
            let most = buffer.len().min(expected.len());
            let count = reader.read(&mut buffer[..most]).expect("more, or the end");
            if count == 0 {
                break;
            }
            let same = buffer[..count] == expected[..count];
            assert!(same, "not what was sent, after {seen} bytes");
            seen += count;
        }
        assert_eq!(seen, times * bytes.len());
    });
}

#[test]
fn servers_on_every_address_are_reached() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("echo served >/tmp/index.html; exec sleep infinity");
        let own = pod.status().network.expect("a network").ip;
        let mut addresses = vec![
            (8081, "127.0.0.1".to_owned()),
            (8082, "[::1]".to_owned()),
            (8083, "0.0.0.0".to_owned()),
        ];
        if runtime == Runtime::Husk {
            addresses.push((8084, own));
        }
        for (port, address) in &addresses {
            let server = format!("httpd -f -h /tmp -p {address}:{port}");
            serve(&container, &[(*port, &server)]);
        }
        for (port, address) in &addresses {
            let mut client = pod.port_forward(*port);
            client.writes(b"GET / HTTP/1.0\r\n\r\n");
            let (answer, error) = client.ended();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(
                answer.ends_with("\r\n\r\nserved\n"),
                "{runtime:?} {address}: {answer} {error}"
            );
        }
        pod.remove();
    });
}

#[test]
fn eight_mebibytes_pass_a_port_forward_each_way() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script("exec sleep infinity");
    let length = 8 * MIB;
    let numbers = format!("seq 2000000 | head -c {length}");
    let take = format!("nc -ll -p 7001 -e sh -c 'head -c {length} | sha256sum'");
    let give = format!("nc -ll -p 7002 -e sh -c '{numbers}'");
    serve(&container, &[(7001, &take), (7002, &give)]);
    let sent = random(length);
    let mut client = pod.port_forward(7001);
    client.writes(&sent);
    let (hash, error) = client.ended();
    let mut expected = Running::start(Command::new("sha256sum"));
    expected.feed(sent);
    let expected = expected.finish().succeeded().text();
    assert_eq!(String::from_utf8_lossy(&hash), expected, "{error}");
    let (got, error) = pod.port_forward(7002).ended();
    let expected = Command::new("sh").args(["-c", &numbers]).output();
    let same = got == expected.expect("numbers").stdout;
    assert!(same, "{} bytes came: {error}", got.len());
    pod.remove();
}

#[test]
fn each_direction_ends_by_itself() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod.script("exec sleep infinity");
        let servers = [
            (7001, "nc -ll -p 7001 -e wc -c"),
            (7002, "nc -ll -p 7002 -e cat"),
        ];
        serve(&container, &servers);
        let namespace = pod.network_namespace();
        for localhost in ["127.0.0.1", "[::1]"] {
            // Answers when it has heard the end, and not before.
            let server = format!("{localhost}:7001");
            let mut stream = dial(&namespace, &server).expect("a server");
            stream.write_all(b"question").expect("a server");
            stream.shutdown(Shutdown::Write).expect("an end");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            assert_eq!(answer.trim(), "8", "{runtime:?} {localhost}");
            let server = format!("{localhost}:7002");
            go_and_come_back(&dial(&namespace, &server).expect("a server"), 1);
        }
        pod.remove();
    });
}

#[test]
#[ignore = "full"]
fn a_quarter_of_a_gibibyte_goes_and_comes_back() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script("exec sleep infinity");
    serve(&container, &[(7002, "nc -ll -p 7002 -e cat")]);
    let stream = dial(&pod.network_namespace(), "127.0.0.1:7002").expect("a server");
    go_and_come_back(&stream, 32);
    pod.remove();
}

#[test]
fn a_port_that_nobody_serves_is_an_error_and_no_wait() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let begun = Instant::now();
        let (data, error) = pod.port_forward(9).ended();
        assert_eq!(data, b"", "{runtime:?}");
        let told = error.contains("refused") || error.contains("reset by peer");
        assert!(
            told && error.contains("port 9 to pod"),
            "{runtime:?}: {error}"
        );
        assert!(begun.elapsed() < DEADLINE / 2, "{runtime:?}");
        if runtime == Runtime::Husk {
            let mut stream = dial(&pod.network_namespace(), "[::1]:9").expect("the shim");
            let told = stream.read(&mut [0]).expect_err("nobody serves it");
            assert_eq!(told.kind(), ErrorKind::ConnectionReset);
        }
        pod.remove();
    });
}

#[test]
fn connections_are_cut_with_the_machine_and_nothing_is_left() {
    let _node = Node::enter();
    let namespace = Namespace::new("forward", "");
    let task = namespace.run();
    told(&task, "nc -ll -p 7002 -e cat >/dev/null 2>&1 &");
    let deadline = Instant::now() + DEADLINE;
    let mut stream = loop {
        let mut stream = dial(&namespace.path(), "127.0.0.1:7002").expect("the shim");
        let echoed = stream
            .write_all(b"here")
            .and_then(|()| stream.read_exact(&mut [0; 4]));
        match echoed {
            Ok(()) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(200));
    };
    process::signal(process::only("husk-vmm"), "KILL");
    let end = stream.read(&mut [0]);
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    task.destroy();
    let refused = dial(&namespace.path(), "127.0.0.1:7002").expect_err("nobody is there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let listening = namespace.told("netstat -ltn | grep LISTEN || :");
    assert_eq!(listening, "");
}
