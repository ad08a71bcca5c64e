//! (i) What a byte, a datagram and a ping cost between the node and a container behind a veth,
//! and how long a link takes to reach a running guest.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use husk_tests::network::{Namespace, echo_datagrams, node, serve, told};
use husk_tests::{Runtime, Task, process};

use crate::{Report, as_f64, kvm, median, milliseconds, network_vmm};

/// Measurements of each kind under each runtime, taken in turns.
pub const RUNS: usize = 3;
/// MiB of a long transfer; the short one is empty, so that the connection cancels out.
pub const MIB: usize = 16;
/// Datagrams sent, each after the answer to the one before.
const DATAGRAMS: usize = 100;
/// What fits an Ethernet frame.
const DATAGRAM: usize = 1472;
/// Ports of the servers.
pub const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
const ECHO: u16 = 7003;

/// A container behind a veth of its own, with servers.
struct Server {
    task: Task,
    address: &'static str,
    _namespace: Namespace,
}

pub fn measure(report: &mut Report) {
    let servers = [
        Server::new(Runtime::Runc, "bench-runc", "10.77.1.1/24", "10.77.1.2"),
        Server::new(Runtime::Husk, "bench-husk", "10.77.2.1/24", "10.77.2.2"),
    ];
    let [theirs, ours] = servers.each_ref();
    type Transfer = fn(&str, usize);
    let transfers: [(&str, &str, &str, Transfer); 2] = [
        (
            "tcp_ratio_runc",
            "tcp_host_ratio_runc",
            "one MiB of TCP to the container",
            send,
        ),
        (
            "tcp_out_ratio_runc",
            "tcp_out_host_ratio_runc",
            "one MiB of TCP from the container",
            receive,
        ),
    ];
    for (key, host_key, what, transfer) in transfers {
        println!("\n{what}, and what of it the host does");
        let cost = |server: &&Server, measure: fn(&dyn Fn()) -> f64| {
            one_mib(|mib| measure(&|| transfer(server.address, mib)))
        };
        let [our_ms, their_ms] =
            report.in_turns(key, RUNS, ("husk", ours), ("runc", theirs), |server| {
                cost(server, elapsed_ms)
            });
        let host_ms = our_ms - cost(&ours, kvm::guest_ms);
        let own = ("husk, but for the guest", host_ms);
        report.ratio(host_key, own, ("runc", their_ms));
    }
    type Cost = fn(&Server) -> f64;
    let kinds: [(&str, &str, Cost); 2] = [
        (
            "udp_ratio_runc",
            "a datagram of 1472 bytes and its answer",
            Server::echoes,
        ),
        ("ping_ratio_runc", "a ping and its answer", Server::ping),
    ];
    for (key, what, cost) in kinds {
        println!("\n{what}");
        let (ours, theirs) = (("husk", ours), ("runc", theirs));
        report.in_turns(key, RUNS, ours, theirs, |server| cost(server));
    }
    println!("\na link added to the pod's network namespace, until the guest has it");
    let plug_ms = median((0..RUNS).map(|_| ours.plugged()).collect());
    report.amount("nic_plug_ms_virtual", plug_ms, "ms", "husk");
    for server in servers {
        server.task.destroy();
    }
    measure_scan(report);
    network_vmm::measure(report);
}

/// What links with an address and a route cost a container's start: they are read, get taps
/// and redirects, become devices, and are set up in the guest.
fn measure_scan(report: &mut Report) {
    println!("\nhow much longer a container takes to start for its links");
    let starts = |links: u32| median((0..RUNS).map(|_| start_ms(links)).collect());
    let without = starts(0);
    for (key, links) in [("nic_scan_ms_1", 1), ("nic_scan_ms_10", 10)] {
        let more = starts(links) - without;
        report.amount(key, more, "ms", &format!("links: {links}"));
    }
}

/// Milliseconds of `ctr run --detach` in a network namespace with so many links.
fn start_ms(links: u32) -> f64 {
    let link = |at| {
        format!(
            "n link add net{at} type dummy; n addr add 10.78.{at}.2/24 dev net{at}
             n link set net{at} up; n route add 10.79.{at}.0/24 via 10.78.{at}.1\n"
        )
    };
    let namespace = Namespace::new("bench-scan", &(0..links).map(link).collect::<String>());
    let start = Instant::now();
    let task = namespace.run();
    let elapsed = milliseconds(start);
    task.destroy();
    elapsed
}

impl Server {
    fn new(
        runtime: Runtime,
        name: &'static str,
        node_address: &str,
        address: &'static str,
    ) -> Self {
        let add = format!(
            "ip link add {name} type veth peer name eth0 netns {name}
             ip addr add {node_address} dev {name}; ip link set {name} up
             n addr add {address}/24 dev eth0; n link set eth0 up"
        );
        let namespace = Namespace::new(name, &add);
        let task = namespace.run_beside_the_nodes_programs(runtime);
        let server = Self {
            task,
            address,
            _namespace: namespace,
        };
        let listen = |port: u16, answer: &str| {
            let program = format!(
                "socket(S, PF_INET, SOCK_STREAM, 0); bind(S, sockaddr_in({port}, INADDR_ANY));
                 listen(S, 8); while (accept(C, S)) {{ {answer}; close(C) }}"
            );
            serve(&server.task, &program);
        };
        listen(SINK, "while (sysread(C, $data, 65536)) {}");
        // As many MiB as the first byte says.
        listen(
            SOURCE,
            "sysread(C, $data, 1); $mib = \"x\" x 1048576; syswrite(C, $mib) for 1 .. ord($data)",
        );
        echo_datagrams(&server.task, ECHO);
        server
    }

    /// Milliseconds of a datagram and its answer.
    fn echoes(&self) -> f64 {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect((self.address, ECHO)).expect("a route");
        let wait = Some(Duration::from_secs(10));
        socket.set_read_timeout(wait).expect("a timeout");
        let (sent, mut answer) = ([7; DATAGRAM], [0; DATAGRAM]);
        let start = Instant::now();
        for _ in 0..DATAGRAMS {
            socket.send(&sent).expect("a datagram");
            let length = socket.recv(&mut answer).expect("an answer");
            assert_eq!(length, DATAGRAM);
        }
        milliseconds(start) / as_f64(DATAGRAMS as u64)
    }

    /// The mean round trip of a ping in milliseconds.
    fn ping(&self) -> f64 {
        let mut ping = Command::new("busybox");
        ping.args(["ping", "-q", "-c", "20", "-i", "0.1", self.address]);
        let said = process::run(ping).succeeded().text();
        let trips = said.lines().find_map(|line| line.split(" = ").nth(1));
        let mean = trips.and_then(|trips| trips.split('/').nth(1)?.parse().ok());
        mean.unwrap_or_else(|| panic!("{said}"))
    }

    /// Milliseconds from a link's making to its being in the guest.
    fn plugged(&self) -> f64 {
        let wait = "until [ -e /sys/class/net/late ]; do usleep 500; done";
        let waiting = self.task.start_exec(&["sh", "-c", wait]);
        let start = Instant::now();
        node("ip -n bench-husk link add late type dummy");
        waiting.finish().succeeded();
        let elapsed = milliseconds(start);
        node("ip -n bench-husk link del late");
        let gone = "while [ -e /sys/class/net/late ]; do usleep 500; done";
        told(&self.task, gone);
        elapsed
    }
}

fn connect(address: &str, port: u16) -> TcpStream {
    let deadline = Instant::now() + process::DEADLINE;
    loop {
        match TcpStream::connect((address, port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Sends so many MiB, and sees that they were read.
pub fn send(address: &str, mib: usize) {
    let mut stream = connect(address, SINK);
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..mib {
        stream.write_all(&piece).expect("the server reads");
    }
    stream.shutdown(Shutdown::Write).expect("the server reads");
    let rest = stream.read(&mut [0]).expect("the server closes");
    assert_eq!(rest, 0);
}

/// Receives so many MiB.
fn receive(address: &str, mib: usize) {
    let mut stream = connect(address, SOURCE);
    let mut received = Vec::with_capacity(mib << 20);
    let count = u8::try_from(mib).expect("a byte");
    stream.write_all(&[count]).expect("the server reads");
    stream
        .read_to_end(&mut received)
        .expect("the server writes");
    assert_eq!(received.len(), mib << 20);
}

pub fn elapsed_ms(work: &dyn Fn()) -> f64 {
    let start = Instant::now();
    work();
    milliseconds(start)
}

/// What one MiB more takes, by what a transfer of so many takes.
pub fn one_mib(takes: impl Fn(usize) -> f64) -> f64 {
    (takes(MIB) - takes(0)) / as_f64(MIB as u64)
}
