//! CNI's firewall plugin behind others: who may talk to whom the node decides, by the pod's addresses
//! and bridge, whatever runs in the pod.

use husk_tests::Node;
use husk_tests::dump::of_guest;
use husk_tests::network::{Chain, Namespace, node, told};
use serde_json::{Value, json};

/// A node that forwards nothing it is not told to. Undone when dropped, with the links named.
struct Closed(&'static [&'static str]);

/// Both kinds of rules, the node's choice of a program for them.
const BOTH: [&str; 2] = ["iptables", "ip6tables"];

impl Closed {
    #[track_caller]
    fn new(links: &'static [&'static str]) -> Self {
        let closed = Self(links);
        node(
            &BOTH
                .map(|rules| format!("{rules} -P FORWARD DROP\n"))
                .concat(),
        );
        closed
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let open = |rules| format!("{rules} -P FORWARD ACCEPT; {rules} -F; {rules} -X\n");
        node(&BOTH.map(open).concat());
        for link in self.0 {
            node(&format!("ip link del {link} || :"));
        }
        // The lock is of iptables' elder kind.
        node("rm -rf /run/plugins /run/cni /run/xtables.lock");
    }
}

/// The address of a number of each family, in 10.`net`.0.0/24 and fd`net`::/64, and ways to all others.
fn ipam(net: u8, number: u8) -> Value {
    let range = |before: String, bits| json!([{ "subnet": format!("{before}0/{bits}"), "rangeStart": format!("{before}{number}") }]);
    json!({
        "type": "host-local",
        "ranges": [range(format!("10.{net}.0."), 24), range(format!("fd{net}::"), 64)],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        "dataDir": "/run/plugins",
    })
}

/// Whether an address answers, asked by what runs a script.
#[track_caller]
fn answers(ask: impl Fn(&str) -> String, address: &str) -> bool {
    let ping = format!("ping -c 1 -W 20 {address} >/dev/null && echo yes || echo no");
    ask(&ping) == "yes\n"
}

/// The same where no answer is the right one.
#[track_caller]
fn is_silent(ask: impl Fn(&str) -> String, address: &str) -> bool {
    let ping = format!("ping -c 2 -W 2 {address} >/dev/null && echo no || echo yes");
    ask(&ping) == "yes\n"
}

#[test]
fn a_pod_is_reached_as_long_as_the_rules_for_its_addresses_are_there() {
    let _node = Node::enter();
    let _closed = Closed::new(&[]);
    let [first, second] = ["open1", "open2"].map(|name| Namespace::new(name, ""));
    let plugins = |net| {
        json!([
            { "type": "ptp", "ipMasq": false, "ipam": ipam(net, 2) },
            { "type": "firewall", "backend": "iptables" },
        ])
    };
    let chains = [
        Chain::add(&first, "eth0", plugins(94)),
        Chain::add(&second, "net1", plugins(95)),
    ];
    first.settle();
    second.settle();
    let before = first.whole();
    let task = first.run();
    assert_eq!(of_guest(&task), first.network());
    let guest = |script: &str| told(&task, script);
    let peer = |script: &str| second.told(script);
    for (of_guest, of_peer) in [("10.94.0.2", "10.95.0.2"), ("fd94::2", "fd95::2")] {
        assert!(answers(guest, of_peer), "{of_peer}");
        assert!(answers(peer, of_guest), "{of_guest}");
    }
    let nothing_to_say = ["", ""];
    assert_eq!(chains[0].verdicts(), nothing_to_say);
    // Somebody takes a rule of version 4: the plugin sees it, and the pod does.
    let rule = "CNI-FORWARD -s 10.94.0.2/32 -j ACCEPT";
    node(&format!("iptables -D {rule}"));
    assert_ne!(chains[0].verdicts()[1], "");
    assert!(is_silent(guest, "10.95.0.2"));
    assert!(answers(guest, "fd95::2"));
    node(&format!("iptables -A {rule}"));
    assert!(answers(guest, "10.95.0.2"));
    assert_eq!(chains[0].verdicts(), nothing_to_say);
    task.destroy();
    assert_eq!(first.whole(), before);
    assert_eq!(chains[0].verdicts(), nothing_to_say);
    for chain in &chains {
        chain.del();
    }
    node("! { iptables-save; ip6tables-save; } | grep -e 10[.]94 -e 10[.]95 -e fd94: -e fd95:");
}

#[test]
fn pods_of_one_bridge_reach_each_other_and_those_of_another_do_not() {
    let _node = Node::enter();
    let _closed = Closed::new(&["same0", "other0"]);
    let names = ["same1", "same2", "other1"];
    let [first, second, other] = names.map(|name| Namespace::new(name, ""));
    let plugins = |bridge: &str, ipam| {
        json!([
            { "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": false, "ipam": ipam },
            { "type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge" },
        ])
    };
    let add = |namespace: &Namespace, interface, bridge, ipam| {
        let chain = Chain::add(namespace, interface, plugins(bridge, ipam));
        namespace.settle();
        chain
    };
    let chains = [
        add(&first, "eth0", "same0", ipam(94, 2)),
        add(&second, "net1", "same0", ipam(94, 3)),
        add(&other, "net2", "other0", ipam(95, 2)),
    ];
    let before = first.whole();
    let task = first.run();
    assert_eq!(of_guest(&task), first.network());
    let guest = |script: &str| told(&task, script);
    for (gateway, of_second, of_other) in [
        ("10.94.0.1", "10.94.0.3", "10.95.0.2"),
        ("fd94::1", "fd94::3", "fd95::2"),
    ] {
        assert!(answers(guest, gateway), "{gateway}");
        assert!(answers(guest, of_second), "{of_second}");
        assert!(is_silent(guest, of_other), "{of_other}");
    }
    for of_guest in ["10.94.0.2", "fd94::2"] {
        assert!(answers(|script| second.told(script), of_guest));
        assert!(is_silent(|script| other.told(script), of_guest));
    }
    for chain in &chains {
        assert_eq!(chain.verdicts(), ["", ""]);
    }
    task.destroy();
    assert_eq!(first.whole(), before);
    for chain in &chains {
        chain.del();
    }
}
