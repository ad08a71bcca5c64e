//! Links that a plugin made on another link of the pod (`linkInContainer` of CNI's vlan, macvlan
//! and ipvlan): the guest makes them like that, and their frames go through the one below.

use husk_tests::Node;
use husk_tests::network::{Namespace, comes_back, node, same, send_back, told};

/// A link with a VLAN, on that an ipvlan, and a macvlan beside it.
const POD: &str = "
    ip link add stacked0 type veth peer name eth0 netns stacked; ip link set stacked0 up
    n addr add 10.75.0.2/24 dev eth0; n addr add fd75::2/64 dev eth0 nodad; n link set eth0 up
    n link add link eth0 name eth0.7 mtu 1400 type vlan id 7 reorder_hdr off egress-qos-map 1:3
    n addr add 10.75.7.2/24 dev eth0.7; n addr add fd75:7::2/64 dev eth0.7 nodad; n link set eth0.7 up
    n link add link eth0.7 name ip0 type ipvlan mode l2
    n addr add 10.75.8.2/24 dev ip0; n link set ip0 up
    n link add link eth0 name mac0 address 02:00:00:00:75:09 type macvlan mode private
    n addr add 10.75.9.2/24 dev mac0; n link set mac0 up
    n link add link eth0 name idle0 type vlan id 9
    n route add default via 10.75.7.1";

/// What is at the other end of it.
const FAR_END: &str = "
    ip addr add 10.75.0.1/24 dev stacked0; ip addr add 10.75.9.1/24 dev stacked0
    ip addr add fd75::1/64 dev stacked0 nodad
    ip link add link stacked0 name stacked7 type vlan id 7; ip link set stacked7 up
    ip addr add 10.75.7.1/24 dev stacked7; ip addr add 10.75.8.1/24 dev stacked7
    ip addr add fd75:7::1/64 dev stacked7 nodad";

/// Each link of [`POD`] by an address that is at its other end.
const FAR: [&str; 6] = [
    "10.75.0.1",
    "10.75.7.1",
    "10.75.8.1",
    "10.75.9.1",
    "fd75::1",
    "fd75:7::1",
];

#[test]
fn links_on_a_link_of_the_pod_are_the_guests_and_their_packets_pass() {
    let _node = Node::enter();
    let namespace = Namespace::new("stacked", POD);
    node(FAR_END);
    namespace.settle();
    let before = namespace.whole();
    let task = namespace.run();
    let guest = same(&task, &namespace.path());
    assert!(
        guest
            .iter()
            .any(|line| line.starts_with("ip0 inet 10.75.8.2/24")),
        "{guest:#?}"
    );
    let kinds = told(&task, "chroot /node /usr/sbin/ip -d link");
    for kind in [
        "eth0.7@eth0",
        "vlan protocol 802.1Q id 7 <",
        "ip0@eth0.7",
        "ipvlan  mode l2",
        "mac0@eth0",
        "macvlan mode private",
    ] {
        assert!(kinds.contains(kind), "{kind}: {kinds}");
    }
    for address in FAR {
        told(&task, &format!("ping -c 1 -W 20 {address}"));
    }
    for address in FAR {
        let ours = address.replace(".1", ".2").replace("::1", "::2");
        node(&format!("busybox ping -c 1 -W 20 {ours} >&2"));
    }
    // Segments that the one below leaves to the host to cut, and the other way round.
    send_back(&task);
    for address in ["10.75.7.2", "10.75.8.2", "10.75.9.2"] {
        comes_back(address);
    }
    task.destroy();
    assert_eq!(namespace.whole(), before);
}

#[test]
fn links_on_a_link_come_and_go_while_the_pod_runs() {
    let _node = Node::enter();
    let namespace = Namespace::new(
        "stacked",
        "ip link add stacked0 type veth peer name eth0 netns stacked; ip link set stacked0 up
         n addr add 10.75.0.2/24 dev eth0; n link set eth0 up",
    );
    let task = namespace.run();
    let change = |script: &str| {
        node(&format!("n() {{ ip -n stacked \"$@\"; }}; {script}"));
        namespace.settle();
        same(&task, &namespace.path())
    };
    let has = |guest: &[String], start: &str| guest.iter().any(|line| line.starts_with(start));
    let reaches = |address| told(&task, &format!("ping -c 1 -W 20 {address}"));
    node(FAR_END);
    let vlan = "n link add link eth0 name eth0.7 type vlan id 7
        n addr add 10.75.7.2/24 dev eth0.7; n link set eth0.7 up
        n link add link eth0.7 name ip0 type ipvlan mode l2
        n addr add 10.75.8.2/24 dev ip0; n link set ip0 up";
    assert!(has(&change(vlan), "ip0 inet 10.75.8.2/24"));
    reaches("10.75.7.1");
    reaches("10.75.8.1");
    change("n link set eth0.7 mtu 1300; n link set ip0 down; n addr add 10.75.7.3/24 dev eth0.7");
    change("n link set eth0 down; n link set eth0 up; n link set ip0 up");
    // A link takes along those on it when it goes up, and an ipvlan to another MTU.
    change("n link set eth0 down; n link set eth0 up; n link set eth0.7 down");
    change("n link set eth0 mtu 9000; n link set eth0.7 mtu 9000; n link set ip0 mtu 1400");
    change("n link set eth0.7 up");
    change("n link set eth0.7 name tagged");
    reaches("10.75.7.1");
    // With the one below go those above, and with another one others come.
    let gone = change("n link del tagged");
    assert!(!has(&gone, "ip0") && !has(&gone, "tagged"), "{gone:#?}");
    change(vlan);
    reaches("10.75.8.1");
    let gone = change("n link del eth0");
    assert!(!has(&gone, "eth0"), "{gone:#?}");
    let again = format!(
        "ip link add stacked0 type veth peer name eth0 netns stacked; ip link set stacked0 up
         n addr add 10.75.0.2/24 dev eth0; n link set eth0 up; {vlan}; {FAR_END}"
    );
    change(&again);
    for address in ["10.75.0.1", "10.75.7.1", "10.75.8.1"] {
        reaches(address);
    }
    change("n link del eth0.7");
    task.destroy();
    let whole = namespace.whole();
    assert!(
        !whole.contains("husk") && !whole.contains("clsact"),
        "{whole}"
    );
}
