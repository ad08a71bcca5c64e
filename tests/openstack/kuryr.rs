//! Kuryr's binding code: whatever link it makes, the guest has it, and it is taken away again.

use husk_tests::network::{Namespace, node, same, told};
use husk_tests::{Node, Task, process};

use crate::script;

/// Runs one of the scripts to its end.
#[track_caller]
fn run(name: &str, args: &[&str]) {
    process::run(script(name, args)).succeeded();
}

/// A link of the node from which Kuryr's are made. Gone when dropped.
struct Uplink(&'static str);

impl Uplink {
    /// A bridge that is the gateway of a network.
    #[track_caller]
    fn bridge(name: &'static str, network: u32) -> Self {
        node(&format!(
            "ip link add {name} type bridge; ip link set {name} up"
        ));
        gateway(name, network);
        Self(name)
    }

    /// A trunk, with the gateway of a network at its other end, in a VLAN if one is told.
    #[track_caller]
    fn trunk(name: &'static str, network: u32, vlan: Option<u32>) -> Self {
        let mut far = format!("{name}-far");
        node(&format!(
            "ip link add {name} type veth peer name {far}; ip link set {name} up; ip link set {far} up"
        ));
        if let Some(id) = vlan {
            let tagged = format!("{name}-{id}");
            node(&format!(
                "ip link add link {far} name {tagged} type vlan id {id}; ip link set {tagged} up"
            ));
            far = tagged;
        }
        gateway(&far, network);
        Self(name)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        node(&format!("ip link del {} || :", self.0));
    }
}

/// Gives a link the addresses of the gateway of a network.
#[track_caller]
fn gateway(link: &str, network: u32) {
    node(&format!(
        "ip address add 10.{network}.0.1/24 dev {link}; ip address add fd{network}::1/64 dev {link} nodad"
    ));
}

/// Waits until the guest has what the namespace has, these words among it.
#[track_caller]
fn carries(task: &Task, namespace: &Namespace, words: &[String]) {
    let guest = same(task, &namespace.path());
    for words in words {
        let there = guest.iter().any(|line| line.starts_with(words));
        assert!(there, "no {words:?} in {guest:#?}");
    }
}

/// Asks the gateway of a network for an answer, in both families and in as much as its 1442 bytes
/// hold.
#[track_caller]
fn reaches(task: &Task, network: u32) {
    told(task, &format!("ping -c 1 -W 20 10.{network}.0.1"));
    told(task, &format!("ping -c 1 -W 20 -s 1414 10.{network}.0.1"));
    told(task, &format!("ping -c 1 -W 20 fd{network}::1"));
}

/// The addresses of a network's port.
fn addresses(interface: &str, network: u32) -> [String; 2] {
    [
        format!("{interface} inet 10.{network}.0.2/24"),
        format!("{interface} inet6 fd{network}::2/64"),
    ]
}

/// What the daemon leaves of a VIF in a namespace.
fn wired(interface: &str, network: u32) -> Vec<String> {
    let mut words = addresses(interface, network).to_vec();
    words.push(format!(
        "{interface} mtu 1442 ether fa:16:3e:00:00:{network}"
    ));
    words.push(format!(
        "172.{network}.0.0/16 via 10.{network}.0.9 dev {interface}"
    ));
    words
}

/// Has the daemon wire one VIF after the other, runs a pod, and has it take them away.
#[track_caller]
fn pod_with(vifs: &[(&str, &Uplink, u32)]) {
    let namespace = Namespace::new("kuryr", "");
    let path = namespace.path();
    let named = vifs
        .iter()
        .map(|(kind, uplink, network)| format!("{kind}:{}:{network}", uplink.0));
    let named: Vec<String> = named.collect();
    let kuryr = |verb: &str| {
        let mut args = vec![verb, &path];
        args.extend(named.iter().map(String::as_str));
        run("vif.py", &args);
    };
    kuryr("connect");
    namespace.settle();
    let before = namespace.whole();
    let task = namespace.run();
    for (at, (_, _, network)) in vifs.iter().enumerate() {
        carries(&task, &namespace, &wired(&format!("eth{at}"), *network));
        reaches(&task, *network);
    }
    let (_, _, first) = vifs[0];
    let default = [format!("10.{first}.0.1"), format!("fd{first}::1")]
        .map(|gateway| format!("default via {gateway} dev eth0"));
    carries(&task, &namespace, &default);
    task.destroy();
    assert_eq!(namespace.whole(), before);
    kuryr("disconnect");
    // A bridge's goes with the namespace, says Kuryr.
    let stay = vifs.iter().filter(|(kind, ..)| *kind == "VIFBridge");
    let links = format!("{}\n", 1 + stay.count());
    assert_eq!(namespace.told("ip -o link | wc -l"), links);
}

#[test]
fn a_pod_on_the_daemons_bridge() {
    let _node = Node::enter();
    pod_with(&[("VIFBridge", &Uplink::bridge("kuryr0", 70), 70)]);
}

#[test]
fn a_pod_on_a_nested_macvlan() {
    let _node = Node::enter();
    let trunk = Uplink::trunk("trunk", 71, None);
    pod_with(&[("VIFMacvlanNested", &trunk, 71)]);
}

#[test]
fn a_pod_on_a_nested_vlan_which_is_free_for_the_next_one() {
    let _node = Node::enter();
    let trunk = Uplink::trunk("trunk", 72, Some(42));
    pod_with(&[("VIFVlanNested", &trunk, 72)]);
    pod_with(&[("VIFVlanNested", &trunk, 72)]);
}

#[test]
fn a_pod_with_three_vifs() {
    let _node = Node::enter();
    pod_with(&[
        ("VIFMacvlanNested", &Uplink::trunk("trunk1", 73, None), 73),
        ("VIFVlanNested", &Uplink::trunk("trunk2", 74, Some(42)), 74),
        ("VIFBridge", &Uplink::bridge("kuryr0", 75), 75),
    ]);
}

/// Moves a port's interface into the namespace, which takes its addresses, and gives it them
/// again, as libnetwork does.
#[track_caller]
fn join(driver: &str, interface: &str, network: u32) {
    let port = format!("t_c{driver}");
    node(&format!(
        "n() {{ ip -n libnetwork \"$@\"; }}; ip link set {port} down; ip link set {port} netns libnetwork
        n link set {port} name {interface}; n address add 10.{network}.0.2/24 dev {interface}
        n address add fd{network}::2/64 dev {interface} nodad; n link set {interface} up"
    ));
}

/// And moves it back.
#[track_caller]
fn leave(driver: &str, interface: &str) {
    let port = format!("t_c{driver}");
    node(&format!(
        "n() {{ ip -n libnetwork \"$@\"; }}; n link set {interface} down
        n link set {interface} name {port}; n link set {port} netns {}",
        std::process::id()
    ));
}

#[test]
fn ports_of_all_drivers_join_a_container_before_and_while_it_runs() {
    let _node = Node::enter();
    let _trunks = [
        Uplink::trunk("trunk1", 81, None),
        Uplink::trunk("trunk2", 82, None),
        Uplink::trunk("trunk3", 83, Some(43)),
    ];
    let ports = ["veth=-", "macvlan=trunk1", "ipvlan=trunk2", "vlan=trunk3"];
    let drivers = ports.map(|port| port.split_once('=').expect("a driver").0);
    let interfaces = ["eth0", "eth1", "eth2", "eth3"];
    let namespace = Namespace::new("libnetwork", "");
    run("ports.py", &[&["bind"], &ports[..]].concat());
    // The host's end of the veth: its driver's `tap` leaves it to others.
    gateway("tapveth", 80);
    let all = || drivers.into_iter().zip(interfaces).zip(80..);
    for ((driver, interface), network) in all().take(2) {
        join(driver, interface, network);
    }
    namespace.settle();
    let task = namespace.run();
    for ((driver, interface), network) in all() {
        if network > 81 {
            join(driver, interface, network);
        }
        carries(&task, &namespace, &addresses(interface, network));
        // kuryr-lib gives a VLAN the MTU of its trunk, and an ipvlan the MAC of its trunk.
        let mtu = if driver == "vlan" { 1500 } else { 1442 };
        let link = match driver {
            "ipvlan" => format!("{interface} mtu {mtu} ether "),
            _ => format!("{interface} mtu {mtu} ether fa:16:3e:00:00:{network}"),
        };
        carries(&task, &namespace, &[link]);
        reaches(&task, network);
    }
    task.destroy();
    let left = namespace.whole();
    assert!(!left.contains("clsact") && !left.contains("husk"), "{left}");
    for ((driver, interface), _) in all() {
        leave(driver, interface);
    }
    run("ports.py", &[&["unbind"], &ports[..]].concat());
    assert_eq!(namespace.told("ip -o link | wc -l"), "1\n");
}
