//! A pod's port as those see it who own the network: only the pod's own addresses are behind it,
//! each answered for once, and with the namespace it is gone at once.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::network::{Namespace, node, told, vanished};
use husk_tests::process::{self, DEADLINE};
use husk_tests::{Node, Pod, Runtime};
use serde_json::Value;

/// What Neutron calls port security, on the node's end of the pod's link: what comes from there
/// with another address of Ethernet, ARP, IPv4 or IPv6 than the port's is dropped. Filters by
/// preference; questions about who has an address and their answers have ones of their own.
const SECURITY: &str = "
    tc qdisc add dev port-far clsact
    from() { tc filter add dev port-far ingress pref $1 protocol $2 flower src_mac 02:00:00:00:00:07 $3 action pass; }
    from 1 arp 'arp_op reply arp_sha 02:00:00:00:00:07 arp_sip 10.77.0.2'
    from 2 arp 'arp_op request arp_sha 02:00:00:00:00:07 arp_sip 10.77.0.2'
    from 3 ip 'src_ip 10.77.0.2'
    from 4 ipv6 'src_ip fd77::2 ip_proto icmpv6 type 136'
    from 5 ipv6 'src_ip fd77::2'
    from 6 ipv6 'src_ip fe80::ff:fe00:7'
    tc filter add dev port-far ingress pref 9 protocol all matchall action drop
    to() { tc filter add dev port-far egress pref $1 protocol $2 flower $3 action pass; }
    to 1 arp 'arp_op request'
    to 2 ipv6 'ip_proto icmpv6 type 135'";
/// Preferences of the filters that count.
const ARP_REPLY: i64 = 1;
const ADVERTISEMENT: i64 = 4;
const DROPPED: i64 = 9;
const ARP_REQUEST: i64 = 1;
const SOLICITATION: i64 = 2;

/// How many packets a filter has seen of those that come from the pod (`ingress`) or go there.
#[track_caller]
fn counted(direction: &str, preference: i64) -> u64 {
    let mut tc = Command::new("tc");
    tc.args(["-s", "-j", "filter", "show", "dev", "port-far", direction]);
    let text = process::run(tc).succeeded().text();
    let filters: Value = serde_json::from_str(&text).expect("JSON");
    let filters = filters.as_array().expect("a list").iter();
    let mut of_it = filters.filter(|filter| filter["pref"] == preference);
    let packets =
        of_it.find_map(|filter| filter["options"]["actions"][0]["stats"]["packets"].as_u64());
    packets.unwrap_or_else(|| panic!("no packets of {direction} {preference} in {text}"))
}

#[test]
fn nothing_leaves_the_port_but_from_its_addresses_each_of_which_is_answered_for_once() {
    let _node = Node::enter();
    let add = "ip link add port-far type veth peer name eth0 address 02:00:00:00:00:07 netns port
        ip link set port-far addrgenmode none up; ip addr add 10.77.0.1/24 dev port-far
        ip addr add fd77::1/64 dev port-far nodad
        n addr add 10.77.0.2/24 dev eth0; n addr add fd77::2/64 dev eth0 nodad; n link set eth0 up";
    let namespace = Namespace::new("port", add);
    node(SECURITY);
    let task = namespace.run_beside_the_nodes_programs(Runtime::Husk);
    told(&task, "nc -ll -p 7001 -e echo served >/dev/null 2>&1 &");
    node("until busybox nc 10.77.0.2 7001 </dev/null | grep served; do sleep 1; done");
    for _ in 0..3 {
        node("ip neigh flush dev port-far; ip -6 neigh flush dev port-far");
        for (from_node, from_guest) in [("10.77.0.2", "10.77.0.1"), ("fd77::2", "fd77::1")] {
            node(&format!("busybox ping -c 1 -W 20 {from_node}"));
            told(&task, &format!("ping -c 1 -W 20 {from_guest}"));
        }
    }
    for (question, answer) in [(ARP_REQUEST, ARP_REPLY), (SOLICITATION, ADVERTISEMENT)] {
        // Who was asked again for the first answer's delay may still have one to give.
        let deadline = Instant::now() + DEADLINE;
        let settled = || {
            let asked = counted("egress", question);
            thread::sleep(Duration::from_secs(3));
            (
                asked,
                counted("ingress", answer),
                counted("egress", question),
            )
        };
        let (asked, answered) = loop {
            let (before, answered, after) = settled();
            if before == after || Instant::now() > deadline {
                break (before, answered);
            }
        };
        assert!(asked >= 3, "asked {asked} times");
        assert_eq!(answered, asked);
    }
    let filters = || {
        let mut tc = Command::new("tc");
        tc.args(["-s", "filter", "show", "dev", "port-far", "ingress"]);
        process::run(tc).text()
    };
    assert_eq!(counted("ingress", DROPPED), 0, "{}", filters());
    // Another address is seen by the filter.
    told(
        &task,
        "ip addr add 10.77.0.9/24 dev eth0; ! ping -c 1 -W 1 -I 10.77.0.9 10.77.0.1",
    );
    assert_ne!(counted("ingress", DROPPED), 0, "{}", filters());
    task.destroy();
}

/// A namespace with a port in VLAN 7 of the node's, and another link whose far end is the node's.
#[track_caller]
fn in_vlan(name: &'static str) -> Namespace {
    let add = format!(
        "ip link add link trunk name {name}-vlan type vlan id 7; ip link set {name}-vlan netns {name}
        n link set {name}-vlan name eth0; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up
        ip link add {name}-far type veth peer name net1 netns {name}; ip link set {name}-far up
        n addr add 10.78.0.2/24 dev net1; n link set net1 up"
    );
    Namespace::new(name, &add)
}

/// How long it takes from a namespace's removal until nothing is left of it: its links end with it.
#[track_caller]
fn removed(name: &str) -> Duration {
    assert!(Path::new(&format!("/sys/class/net/{name}-far")).exists());
    node(&format!("ip netns del {name}"));
    vanished(&format!("{name}-far"))
}

#[test]
fn a_removed_namespace_is_gone_within_a_second_and_its_vlan_free() {
    let _node = Node::enter();
    node(
        "ip link add trunk type veth peer name trunk-far; ip link set trunk up
        ip link set trunk-far up; ip link add link trunk-far name trunk-7 type vlan id 7
        ip addr add 10.77.0.1/24 dev trunk-7; ip link set trunk-7 up",
    );
    let _trunk = Trunk;
    // What the kernel takes for one that nobody has used.
    let unused = in_vlan("unused");
    let own = removed("unused");
    drop(unused);
    // The node may be busy with something else; a reference that is kept is there every time.
    let taken = (0..3).map(|_| {
        let first = in_vlan("first");
        let task = first.run();
        node("ip neigh flush dev trunk-7");
        told(&task, "ping -c 1 -W 20 10.77.0.1");
        task.destroy();
        removed("first")
    });
    let taken = taken.min().expect("three");
    let limit = own + Duration::from_secs(1);
    assert!(taken < limit, "{taken:?}, one that nobody used {own:?}");
    let second = in_vlan("second");
    let task = second.run();
    node("ip neigh flush dev trunk-7");
    told(&task, "ping -c 1 -W 20 10.77.0.1");
    task.destroy();
    drop(second);
}

#[test]
fn the_namespace_of_a_stopped_pod_is_gone_within_a_second() {
    let _node = Node::enter();
    let watch = |name: &str, namespace: &str| {
        node(&format!(
            "ip link add {name}-far type veth peer name watch netns {namespace}"
        ));
    };
    let unused = Namespace::new("unused", "");
    watch("unused", "unused");
    let own = removed("unused");
    drop(unused);
    Runtime::both(|runtime| {
        let far = format!("pod-{}", runtime.handler());
        let taken = (0..3).map(|_| {
            let pod = Pod::run(runtime);
            let container = pod.script("exec sleep infinity");
            let path = pod.network_namespace();
            watch(&far, path.rsplit('/').next().expect("a name"));
            drop(container);
            pod.stop();
            let taken = vanished(&format!("{far}-far"));
            assert!(!Path::new(&path).exists(), "{runtime:?}: {path}");
            pod.remove();
            taken
        });
        let taken = taken.min().expect("three");
        let limit = own + Duration::from_secs(1);
        assert!(
            taken < limit,
            "{runtime:?}: {taken:?}, one that nobody used {own:?}"
        );
    });
}

/// Takes the node's VLANs away when dropped.
struct Trunk;

impl Drop for Trunk {
    fn drop(&mut self) {
        node("ip link del trunk || :");
    }
}
