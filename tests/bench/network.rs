//! (i) What a byte, a datagram and a ping cost between the node and a container behind a veth,
//! and how long a link takes to reach a running guest.

use std::fs;
use std::process::Command;
use std::time::Instant;

use husk_tests::network::{Namespace, node, told};
use husk_tests::{Runtime, Task, process};
use serde_json::Value;

use crate::{Report, kvm, median, milliseconds, network_vmm};

/// Measurements of each kind under each runtime, taken in turns.
pub const RUNS: usize = 3;
/// What fits an Ethernet frame.
const DATAGRAM: &str = "1472";
/// Bits a second, few enough that the CPU is idle most of the time: what a flood drops is no part
/// of the cost, and KVM has less reason to poll for a halted guest, which would count as work.
const RATE: &str = "20M";

/// A container behind a veth of its own, with a server.
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
    let transfers: [(&str, &str, &str, &[&str]); 2] = [
        (
            "tcp_ratio_runc",
            "tcp_host_ratio_runc",
            "one MiB of TCP to the container",
            &[],
        ),
        (
            "tcp_out_ratio_runc",
            "tcp_out_host_ratio_runc",
            "one MiB of TCP from the container",
            &["--reverse"],
        ),
    ];
    for (key, host_key, what, flags) in transfers {
        println!("\n{what}, and what of it the host does");
        let [our_ms, their_ms] =
            report.in_turns(key, RUNS, ("husk", ours), ("runc", theirs), |server| {
                tcp(server.address, flags).mib_ms()
            });
        let (guest_ms, transfer) = kvm::guest_ms(|| tcp(ours.address, flags));
        let own = ("husk, but for the guest", our_ms - guest_ms / transfer.mib);
        report.ratio(host_key, own, ("runc", their_ms));
    }
    type Cost = fn(&Server) -> f64;
    let kinds: [(&str, &str, Cost); 3] = [
        (
            "udp_ratio_runc",
            "a datagram of 1472 bytes to the container",
            |server| server.datagram(&[]),
        ),
        (
            "udp_out_ratio_runc",
            "a datagram of 1472 bytes from the container",
            |server| server.datagram(&["--reverse"]),
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
        // Of what it sees there only /dev is its own.
        told(&task, &serve("chroot /node /usr/bin/iperf3"));
        Self {
            task,
            address,
            _namespace: namespace,
        }
    }

    /// Milliseconds of work for a datagram that arrives. Between two the sender sleeps.
    fn datagram(&self, flags: &[&str]) -> f64 {
        let udp = ["--udp", "--bitrate", RATE, "--length", DATAGRAM];
        // The longer test less the shorter one: what they have in common cancels out.
        let [short, long] = ["1", "3"].map(|seconds| {
            let before = busy_ms();
            let received = iperf3(self.address, seconds, &[&udp, flags].concat());
            let [sent, lost] = ["packets", "lost_packets"].map(|key| number(&received, key));
            (busy_ms() - before, sent - lost)
        });
        (long.0 - short.0) / (long.1 - short.1)
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

/// A script that starts iperf3's server in the background and waits until it listens. Each
/// stream's buffer is a temporary file that is mapped.
pub fn serve(iperf3: &str) -> String {
    format!(
        "mkdir -p /dev/shm; said=/dev/shm/said
         TMPDIR=/dev/shm {iperf3} --server --forceflush >$said 2>&1 &
         until grep -q listening $said; do usleep 10000; done"
    )
}

/// What arrived of a transfer.
pub struct Transfer {
    mib: f64,
    seconds: f64,
}

impl Transfer {
    pub fn mib_ms(&self) -> f64 {
        self.seconds * 1000.0 / self.mib
    }
}

/// Transfers for a second, all of which is work. (With a number of bytes instead, iperf3 3.18
/// spins from the last one to the end of its interval.)
pub fn tcp(address: &str, flags: &[&str]) -> Transfer {
    let received = iperf3(address, "1", flags);
    Transfer {
        mib: number(&received, "bytes") / f64::from(1 << 20),
        seconds: number(&received, "seconds"),
    }
}

/// What iperf3's receiver tells of a test.
fn iperf3(address: &str, seconds: &str, flags: &[&str]) -> Value {
    let mut iperf3 = Command::new("iperf3");
    iperf3.args(["--json", "--interval", "0", "--client", address]);
    iperf3.args(["--time", seconds]).args(flags);
    let said = process::run(iperf3).succeeded().text();
    let mut said: Value = serde_json::from_str(&said).expect("JSON of iperf3");
    said["end"]["sum_received"].take()
}

fn number(received: &Value, key: &str) -> f64 {
    let number = received[key].as_f64();
    number.unwrap_or_else(|| panic!("no {key} in {received}"))
}

/// Milliseconds so far in which the node's one CPU ran tasks (Linux: scheduler/sched-stats).
fn busy_ms() -> f64 {
    let stat = fs::read_to_string("/proc/schedstat").expect("the scheduler's statistics");
    let cpu = stat.lines().find_map(|line| line.strip_prefix("cpu0 "));
    let running_ns = cpu.and_then(|cpu| cpu.split(' ').nth(6)?.parse::<f64>().ok());
    running_ns.unwrap_or_else(|| panic!("{stat}")) / 1e6
}
