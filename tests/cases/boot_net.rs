//! `husk-vmm` by hand with network devices: a tap on the node, busybox in the guest.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc;

use husk_tests::process::{DEADLINE, run, signal};
use husk_tests::{Node, Vm};
use serde_json::json;

/// Exit codes of `husk-vmm`, as its README lists them.
const RESET: i32 = 11;
const CONFIG: i32 = 2;

const MIB: usize = 1 << 20;

/// A tap of the node, up, with `192.0.2.1` and `2001:db8::1`. Gone when dropped.
struct Tap(&'static str);

impl Tap {
    #[track_caller]
    fn new(name: &'static str, mtu: u32) -> Self {
        ip(&format!("tuntap add dev {name} mode tap"));
        let tap = Self(name);
        ip(&format!("link set {name} mtu {mtu}"));
        ip(&format!("address add 192.0.2.1/24 dev {name}"));
        if mtu >= 1280 {
            ip(&format!("address add 2001:db8::1/64 dev {name} nodad"));
        }
        ip(&format!("link set {name} up"));
        tap
    }

    /// A counter of the link: `rx` is what the guest sent.
    fn packets(&self, direction: &str) -> usize {
        let file = format!("/sys/class/net/{}/statistics/{direction}_packets", self.0);
        let text = std::fs::read_to_string(file).expect("a counter of the tap");
        text.trim().parse().expect("a number")
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        ip(&format!("link delete {}", self.0));
    }
}

#[track_caller]
fn ip(arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    run(command).succeeded();
}

/// A machine with `tap` as its `eth0`, which has an address when `script` runs.
fn vm(tap: &Tap, mtu: u32, script: &str) -> Vm {
    let mut vm = Vm::running(&format!(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad\n\
         ip link set lo up; ip link set eth0 up\n\
         ip address add 192.0.2.2/24 dev eth0; ip address add 2001:db8::2/64 dev eth0\n\
         {script}\n\
         reboot -f"
    ));
    vm.config["net"] = json!([{ "tap": tap.0, "mac": "02:00:00:00:00:02", "mtu": mtu }]);
    vm
}

#[test]
fn the_guest_and_the_host_reach_each_other() {
    let _node = Node::enter();
    let tap = Tap::new("husk0", 1400);
    let vm = vm(
        &tap,
        1400,
        "echo eth0 $(cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu)\n\
         ping -c 3 192.0.2.1; ping -6 -c 3 2001:db8::1\n\
         echo ready; read line",
    );
    let mut running = vm.start();
    running.wait_for("ready");
    let mut ping = Command::new("busybox");
    ping.args(["ping", "-c", "3", "192.0.2.2"]);
    let from_host = run(ping).succeeded().text();
    assert!(from_host.contains(" 3 packets received"), "{from_host}");
    running.write(b"\n");
    let output = running.finish().ended_with(RESET);
    let text = output.text();
    assert!(text.contains("eth0 02:00:00:00:00:02 1400"), "{output}");
    assert_eq!(text.matches(" 3 packets received").count(), 2, "{output}");
    assert!(!text.contains("DUP!"), "{output}");
}

#[test]
fn eight_mib_each_way_are_the_same_and_go_in_segments() {
    let _node = Node::enter();
    let tap = Tap::new("husk0", 1500);
    let vm = vm(
        &tap,
        1500,
        "cat /sys/class/net/eth0/device/features; echo\n\
         echo ready; read line\n\
         head -c 8388608 /dev/urandom > /out; echo out $(sha256sum < /out)\n\
         nc 192.0.2.1 7000 < /out\n\
         nc 192.0.2.1 7001 < /dev/null > /in; echo in $(sha256sum < /in)",
    );
    let mut running = vm.start();
    running.wait_for("ready");
    let data: Vec<u8> = (0..8 * MIB as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let in_sum = sha256(&vm, &data);
    let received = serve("192.0.2.1:7000", |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("what nc sends");
        bytes
    });
    let sent = serve("192.0.2.1:7001", move |mut stream| {
        stream.write_all(&data).expect("nc reads");
    });
    running.write(b"\n");
    let received = received.recv_timeout(DEADLINE).expect("a connection");
    sent.recv_timeout(DEADLINE).expect("a second one");
    let output = running.finish().ended_with(RESET);
    assert_eq!(received.len(), 8 * MIB, "{output}");
    let out_sum = sha256(&vm, &received);
    let text = output.text();
    assert!(text.contains(&format!("out {out_sum}")), "{output}");
    assert!(text.contains(&format!("in {in_sum}")), "{output}");
    // Bits 0, 1, 3, 5, 7 to 9, 11 to 13, 15, 28, 29, 32 and 54 to 56: all that is offered.
    let zeros = |count| "0".repeat(count);
    let features = format!("1101010111011101{}11001{}111", zeros(12), zeros(21));
    assert!(text.contains(&features), "{output}");
    // With segments no larger than the MTU there would be some 5800 each way.
    for direction in ["rx", "tx"] {
        let packets = tap.packets(direction);
        assert!(packets < 5000, "{direction}: {packets} packets");
    }
}

/// Serves one connection to `address` in the background.
fn serve<T: Send + 'static>(
    address: &str,
    answer: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let listener = TcpListener::bind(address).expect("an address of the tap");
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        drop(done.send(answer(stream)));
    });
    result
}

fn sha256(vm: &Vm, bytes: &[u8]) -> String {
    let file = vm.path("bytes");
    std::fs::write(&file, bytes).expect("a file");
    let mut command = Command::new("sha256sum");
    command.arg(file);
    let text = run(command).succeeded().text();
    text.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn packets_of_the_mtu_pass_whole_and_longer_ones_are_cut() {
    let _node = Node::enter();
    // The most that Linux gives a tap is the largest packet less an Ethernet header.
    for mtu in [68, 9000, 65521] {
        let tap = Tap::new("husk0", mtu);
        let fits = mtu - 28;
        let vm = vm(
            &tap,
            mtu,
            &format!(
                "fragments() {{ awk '/^Ip: [0-9]/ {{ print $(NF - 1) }}' /proc/net/snmp; }}\n\
                 ping -q -c 2 -s {fits} 192.0.2.1; echo cut=$(fragments)\n\
                 ping -q -c 2 -s {} 192.0.2.1; echo cut=$(fragments)",
                (fits + 1).min(65507)
            ),
        );
        let output = vm.run().ended_with(RESET);
        let text = output.text();
        let received = text.matches(" 2 packets received").count();
        assert_eq!(received, 2, "at {mtu}: {output}");
        let cut: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("cut="))
            .collect();
        assert_eq!(cut.first(), Some(&"0"), "at {mtu}: {output}");
        assert_ne!(cut.last(), Some(&"0"), "at {mtu}: {output}");
    }
}

#[test]
fn what_arrives_while_the_vmm_is_stopped_is_neither_lost_nor_doubled() {
    let _node = Node::enter();
    let tap = Tap::new("husk0", 1500);
    // Datagrams to a port where nobody listens are counted by the guest's kernel.
    let count = "awk '/^Udp: [0-9]/ { print $3 }' /proc/net/snmp";
    let vm = vm(
        &tap,
        1500,
        // Time for all to come, and some more for what should not.
        &format!(
            "ping -c 1 192.0.2.1; echo ready; read line; n=0\n\
             until [ $({count}) -ge 300 ] || [ $n = 60 ]; do sleep 1; n=$((n + 1)); done\n\
             sleep 2; echo came=$({count})"
        ),
    );
    let mut running = vm.start();
    running.wait_for("ready");
    let host = UdpSocket::bind("192.0.2.1:0").expect("the tap's address");
    signal(running.pid(), "STOP");
    for datagram in 0..300_u32 {
        host.send_to(&datagram.to_le_bytes(), "192.0.2.2:9")
            .expect("a datagram is sent");
    }
    signal(running.pid(), "CONT");
    running.write(b"\n");
    let output = running.finish().ended_with(RESET);
    assert!(output.text().contains("came=300"), "{output}");
}

#[test]
fn a_driver_can_let_go_of_the_device_and_take_it_again() {
    let _node = Node::enter();
    let tap = Tap::new("husk0", 1500);
    let vm = vm(
        &tap,
        1500,
        "ping -c 1 192.0.2.1; ping -q -A -s 1400 192.0.2.1 &\n\
         cd /sys/bus/virtio/drivers/virtio_net; name=$(basename $(echo virtio*))\n\
         for round in 1 2 3; do echo $name > unbind; echo $name > bind; done\n\
         ip link set eth0 up; ip address add 192.0.2.2/24 dev eth0\n\
         ping -c 3 192.0.2.1",
    );
    let output = vm.run().ended_with(RESET);
    assert!(output.text().contains(" 3 packets received"), "{output}");
    assert!(!output.stderr.contains("cannot go live"), "{output}");
}

#[test]
fn two_devices_are_two_links() {
    let _node = Node::enter();
    let first = Tap::new("husk0", 1500);
    ip("tuntap add dev husk1 mode tap");
    let second = Tap("husk1");
    ip("address add 198.51.100.1/24 dev husk1");
    ip("link set husk1 up");
    let mut vm = vm(
        &first,
        1500,
        "ip address add 198.51.100.2/24 dev eth1; ip link set eth1 up\n\
         ping -c 3 192.0.2.1; ping -c 3 198.51.100.1; cat /sys/class/net/eth1/address",
    );
    let mac = "02:00:00:00:00:03";
    let devices = vm.config["net"].as_array_mut().expect("a list");
    devices.push(json!({ "tap": second.0, "mac": mac, "mtu": 1500 }));
    let output = vm.run().ended_with(RESET);
    let text = output.text();
    assert_eq!(text.matches(" 3 packets received").count(), 2, "{output}");
    assert!(text.contains(mac), "{output}");
}

#[test]
fn a_wrong_mtu_address_or_tap_is_refused_by_name() {
    let _node = Node::enter();
    for (device, words) in [
        (
            json!({ "tap": "husk0", "mac": "02:00:00:00:00:02", "mtu": 67 }),
            ["`net[0].mtu` is 67", "68 to 65535"],
        ),
        (
            json!({ "tap": "husk0", "mac": "03:00:00:00:00:02", "mtu": 1500 }),
            ["`net[0].mac`", "03:00:00:00:00:02"],
        ),
        (
            json!({ "tap": 99, "mac": "02:00:00:00:00:02", "mtu": 65535 }),
            ["the tap", "descriptor 99"],
        ),
        (
            json!({ "tap": "a-name-too-long-for-a-link", "mac": "02:00:00:00:00:02", "mtu": 68 }),
            ["the tap", "a-name-too-long-for-a-link"],
        ),
    ] {
        let mut vm = Vm::running("reboot -f");
        vm.config["net"] = json!([device]);
        vm.run().ended_with(CONFIG).failed_saying(&words);
    }
}
