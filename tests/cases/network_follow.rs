//! The guest's network follows the pod's: links, addresses, routes and rules that come and go
//! after the boot, in the orders in which Docker, nerdctl and Zun wire a container.

use std::time::Instant;

use husk_tests::dump::{self, of_namespace};
use husk_tests::hold::{self, Hold};
use husk_tests::network::{Namespace, PROGRAMS, node, same, told};
use husk_tests::process::DEADLINE;
use husk_tests::{Container, Node};

/// Tells by which address the pod reaches another network.
const BY: &str = "ip -6 route get fd99::1";

#[track_caller]
fn has(lines: &[String], words: &str) {
    assert!(lines.iter().any(|line| line.contains(words)), "{lines:#?}");
}

/// Runs a script on the node in which `n` is `ip` in the namespace of a process.
#[track_caller]
fn inside(pid: u32, script: &str) {
    let enter = format!("n() {{ nsenter --net=/proc/{pid}/ns/net ip \"$@\"; }}");
    node(&format!("{enter}; {script}"));
}

#[test]
fn changes_of_a_running_pods_network_reach_it() {
    let _node = Node::enter();
    let add = "ip link add live-far type veth peer name eth0 netns live; ip link set live-far up
        ip addr add 10.77.0.1/24 dev live-far; ip addr add fd77::1/64 dev live-far nodad
        n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    let namespace = Namespace::new("live", add);
    let task = namespace.run();
    let path = namespace.path();
    let change = |script: &str| {
        let ip = "n() { ip -n live \"$@\"; }";
        node(&format!("{ip}; {script}"));
        same(&task, &path)
    };
    same(&task, &path);
    let now = change(
        "n addr add 10.77.0.3/24 dev eth0; n addr add fd77::2/64 dev eth0 nodad
        n route add default via 10.77.0.1; n route add 10.99.0.0/16 via 10.77.0.1 src 10.77.0.3
        n route add default via 10.77.0.1 table 100; n rule add from 10.77.0.3 lookup 100
        n neigh add 10.77.0.200 lladdr 02:00:00:00:00:aa dev eth0 nud permanent",
    );
    has(&now, "default via 10.77.0.1 dev eth0");
    has(&now, "10.99.0.0/16 via 10.77.0.1");
    has(&now, "02:00:00:00:00:aa");
    // By the address that came last, as on the host.
    change("n addr add fd77::3/64 dev eth0 nodad; n -6 route add default via fd77::1");
    for network in [namespace.told(BY), told(&task, BY)] {
        assert!(network.contains("src fd77::3"), "{network}");
    }
    // A change of a parameter alone is told, too.
    node("ip netns exec live sysctl -q -w net.ipv4.ip_forward=1");
    told(
        &task,
        "until grep -q 1 /proc/sys/net/ipv4/ip_forward; do sleep 1; done",
    );
    for address in ["10.77.0.3", "fd77::2"] {
        node(&format!("busybox ping -c 1 -W 20 {address}"));
    }
    let now = change("n link set eth0 mtu 1400; n link set eth0 address 02:00:00:00:00:77");
    has(&now, "eth0 mtu 1400 ether 02:00:00:00:00:77");
    told(&task, "ping -c 1 -W 20 10.77.0.1");
    // More than it has ever had.
    let now = change("ip link set live-far mtu 9000; n link set eth0 mtu 9000");
    has(&now, "eth0 mtu 9000");
    told(&task, "ping -c 1 -W 20 -s 8000 10.77.0.1");
    // Its routes go with it, and come with it.
    let now = change("n link set eth0 down");
    assert!(!now.iter().any(|line| line.contains("default via")));
    change("n link set eth0 up; n route add default via 10.77.0.1");
    let now = change("n link set eth0 down; n link set eth0 name net0; n link set net0 up");
    has(&now, "net0 inet 10.77.0.2/24");
    // The routes from an address go with it; the other address keeps its own.
    change("n addr del 10.77.0.3/24 dev net0; n rule del from 10.77.0.3 lookup 100");
    let neighbour = "10.77.0.201 lladdr 02:00:00:00:00:ab dev net0";
    change(&format!("n neigh add {neighbour} nud permanent"));
    change(&format!("n neigh del {neighbour}"));
    told(&task, "ping -c 1 -W 20 10.77.0.1");
    // Somebody has use for the place of our redirect, and lets go of it: traffic comes back.
    let tc = |batch: &str| {
        node(&format!(
            "printf '{batch}\\n' | ip netns exec live tc -batch -"
        ));
        told(&task, "until ping -c 1 -W 2 10.77.0.1; do sleep 1; done");
        same(&task, &path);
    };
    let theirs = "filter add dev net0 egress pref 7 matchall classid 1:1";
    tc(&format!(
        "qdisc del dev net0 clsact\\nqdisc add dev net0 clsact\\n{theirs}"
    ));
    node("ip netns exec live tc filter show dev net0 egress | grep 'pref 7 '");
    tc("qdisc del dev net0 clsact");
    task.destroy();
    let left = namespace.whole();
    assert!(!left.contains("clsact") && !left.contains("husk"), "{left}");
}

#[test]
fn each_property_that_is_changed_while_a_pod_runs_reaches_it() {
    let _node = Node::enter();
    let add = "ip link add each-far type veth peer name eth0 netns each; ip link set each-far up
        ip addr add 10.77.0.1/24 dev each-far; ip addr add fd77::1/64 dev each-far nodad
        n addr add 10.77.0.2/24 dev eth0; n addr add fd77::2/64 dev eth0 nodad; n link set eth0 up";
    let namespace = Namespace::new("each", add);
    let task = namespace.run();
    for (change, then) in [
        ("link set eth0 alias x txqueuelen 77", "qlen 77 alias x"),
        ("link set eth0 alias ''", "qlen 77 <"),
        ("link set eth0 group 5", "group 5 qlen 77"),
        ("link set eth0 group default", "group default qlen 77"),
        (
            "link set eth0 promisc on allmulticast on",
            "ALLMULTI,PROMISC",
        ),
        (
            "link set eth0 promisc off allmulticast off",
            "<BROADCAST,MULTICAST,UP>",
        ),
        (
            "link set eth0 arp off multicast off",
            "<BROADCAST,NOARP,UP>",
        ),
        (
            "link set eth0 arp on multicast on",
            "<BROADCAST,MULTICAST,UP>",
        ),
        // Of rules with one preference the first counts.
        ("rule add uidrange 5-6 lookup 100 prio 600", "uidrange 5-6"),
        ("rule add oif eth0 lookup 100 prio 600", "oif eth0"),
        ("rule add iif eth0 lookup 100 prio 600", "iif eth0"),
        ("rule del oif eth0 lookup 100 prio 600", "iif eth0"),
        ("rule add oif eth0 lookup 100 prio 600", "oif eth0"),
        (
            "route add 10.95.0.0/16 nexthop via 10.77.0.1 weight 3 nexthop via 10.77.0.9 weight 5",
            "weight 5",
        ),
        (
            "route replace 10.95.0.0/16 nexthop via 10.77.0.1 weight 1 nexthop via 10.77.0.8 weight 9",
            "via 10.77.0.8 dev eth0 weight 9",
        ),
        ("route add 10.96.0.0/16 via 10.77.0.1 mtu 1300", "mtu 1300"),
        (
            "route replace 10.96.0.0/16 via 10.77.0.1 mtu 1200",
            "mtu 1200",
        ),
        (
            "-6 route add fd95::/64 nexthop via fd77::1 weight 2 nexthop via fd77::9 weight 4",
            "nexthop via fd77::9 dev eth0 weight 4",
        ),
        (
            "-6 route append fd95::/64 via fd77::8",
            "nexthop via fd77::8",
        ),
        ("-6 route del fd95::/64 via fd77::9", "nexthop via fd77::8"),
        (
            "addr add 10.77.0.3/24 brd + dev eth0",
            "10.77.0.3/24 brd 10.77.0.255",
        ),
    ] {
        node(&format!("ip -n each {change}"));
        has(&same(&task, &namespace.path()), then);
    }
    for address in ["10.77.0.1", "fd77::1"] {
        told(&task, &format!("ping -c 1 -W 20 {address}"));
    }
    task.destroy();
}

#[test]
fn links_of_a_running_pod_come_and_go() {
    let _node = Node::enter();
    let add = "ip link add come-far type veth peer name eth0 netns come; ip link set come-far up
        ip addr add 10.77.0.1/24 dev come-far; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    let namespace = Namespace::new("come", add);
    let task = namespace.run();
    let path = namespace.path();
    let ip = "n() { ip -n come \"$@\"; }";
    let second = "ip link add come-two type veth peer name eth1 netns come; ip link set come-two up
        ip addr add 10.78.0.1/24 dev come-two; n addr add 10.78.0.2/24 dev eth1; n link set eth1 up";
    for _ in 0..2 {
        node(&format!("{ip}; {second}"));
        has(&same(&task, &path), "eth1 inet 10.78.0.2/24");
        told(&task, "ping -c 1 -W 20 10.78.0.1");
        node(&format!("{ip}; n link del eth1"));
        same(&task, &path);
        assert_eq!(told(&task, "ls /sys/class/net"), "eth0\nlo\n");
    }
    // Gone and there again, by the same name, before anybody looks.
    node(&format!(
        "{ip}; {second}; n link del eth1; {second}; n link del eth1; {second}"
    ));
    has(&same(&task, &path), "eth1 inet 10.78.0.2/24");
    told(&task, "ping -c 1 -W 20 10.78.0.1");
    // Out of the namespace and back, with the number that it had.
    let back = "n link set eth1 netns 1; ip link set eth1 netns come
        n addr add 10.78.0.2/24 dev eth1; n link set eth1 up";
    node(&format!("{ip}; {back}"));
    has(&same(&task, &path), "eth1 inet 10.78.0.2/24");
    told(&task, "ping -c 1 -W 20 10.78.0.1");
    // Names are swapped with the link of the boot.
    let swap = "for l in eth0 eth1; do n link set $l down; done; n link set eth0 name x
        n link set eth1 name eth0; n link set x name eth1; for l in eth0 eth1; do n link set $l up; done";
    node(&format!("{ip}; {swap}"));
    has(&same(&task, &path), "eth0 inet 10.78.0.2/24");
    told(
        &task,
        "ping -c 1 -W 20 10.77.0.1 && ping -c 1 -W 20 10.78.0.1",
    );
    // The link of the boot goes.
    node(&format!("{ip}; n link del eth1"));
    same(&task, &path);
    told(&task, "ping -c 1 -W 20 10.78.0.1");
    node(&format!("{ip}; n link del eth0"));
    let deadline = Instant::now() + DEADLINE;
    while told(&task, "ls /sys/class/net") != "lo\n" {
        assert!(Instant::now() < deadline, "a link is left");
    }
    node(&format!("{ip}; {add}"));
    has(&same(&task, &path), "eth0 inet 10.77.0.2/24");
    told(&task, "ping -c 1 -W 20 10.77.0.1");
    task.destroy();
    let left = namespace.whole();
    assert!(!left.contains("clsact") && !left.contains("husk"), "{left}");
}

/// As Docker from version 26 on does it, and every caller without a namespace of its own.
#[test]
fn a_namespace_that_is_filled_between_create_and_start_is_whole_when_the_program_begins() {
    let _node = Node::enter();
    let mut hold = Hold::install();
    let container = Container::husk(&["sh", "-c", &dump::script()])
        .with(hold::FLAGS)
        .with(PROGRAMS);
    let client = container.start();
    hold.wait();
    let task = container.task();
    let pid = task.pid();
    inside(
        pid,
        &format!(
            "ip link add dock-far type veth peer name eth0 netns {pid}; ip link set dock-far up
            ip addr add 172.17.0.1/16 dev dock-far
            n link set eth0 addrgenmode none address 02:42:ac:11:00:02 mtu 1450
            n addr add 172.17.0.2/16 brd + dev eth0; n addr add fd17::2/64 dev eth0 nodad
            n link set eth0 up; n route add default via 172.17.0.1
            n -6 route add default via fd17::1"
        ),
    );
    let host = of_namespace(&format!("/proc/{pid}/ns/net"));
    hold.release();
    let guest = dump::common(&client.finish().succeeded().text());
    assert_eq!(guest, host);
    has(&guest, "eth0 inet 172.17.0.2/16");
}

/// As Zun's CNI daemon attaches a port, and `docker network connect`: a link is moved into the
/// namespace of the process that containerd was told, and gets its addresses there later.
#[test]
fn a_link_is_attached_to_a_running_container_by_its_pid_and_detached() {
    let _node = Node::enter();
    let task = Container::husk(&["sleep", "infinity"])
        .with(&["--cap-add", "CAP_NET_RAW", "--null-io"])
        .with(PROGRAMS)
        .detach();
    assert_eq!(told(&task, "ls /sys/class/net"), "lo\n");
    let pid = task.pid();
    let namespace = format!("/proc/{pid}/ns/net");
    // The loopback interface is nobody else's to bring up.
    has(&of_namespace(&namespace), "lo inet 127.0.0.1/8");
    let attach = format!(
        "ip link add tapzun type veth peer name t_czun; ip link set t_czun netns {pid}
        ip addr add 10.66.0.1/24 dev tapzun; ip link set tapzun up
        n link set t_czun name eth0 addrgenmode none"
    );
    let address = "n link set eth0 address fa:16:3e:00:00:07 mtu 1442 up
        n addr add 10.66.0.2/24 dev eth0; n addr add fd66::2/64 dev eth0 nodad
        n route add default via 10.66.0.1";
    for _ in 0..2 {
        inside(pid, &attach);
        same(&task, &namespace);
        inside(pid, address);
        let now = same(&task, &namespace);
        has(&now, "eth0 mtu 1442 ether fa:16:3e:00:00:07");
        has(&now, "default via 10.66.0.1 dev eth0");
        told(&task, "ping -c 1 -W 20 10.66.0.1");
        node("busybox ping -c 1 -W 20 10.66.0.2");
        node("ip link del tapzun");
        same(&task, &namespace);
        assert_eq!(told(&task, "ls /sys/class/net"), "lo\n");
    }
    task.destroy();
}

#[test]
fn a_link_whose_tap_or_redirect_somebody_took_is_connected_anew() {
    let _node = Node::enter();
    let add = "ip link add taken-far type veth peer name eth0 netns taken; ip link set taken-far up
        ip addr add 10.77.0.1/24 dev taken-far; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    let namespace = Namespace::new("taken", add);
    let before = namespace.whole();
    let task = namespace.run();
    let tap = namespace.told("ip -o link | sed -n 's/.*\\(husk[0-9]*\\).*/\\1/p'");
    let tap = tap.trim();
    for taken in [
        format!("ip -n taken link del {tap}"),
        format!("ip -n taken link set {tap} down"),
        "ip netns exec taken tc qdisc del dev eth0 clsact".to_owned(),
    ] {
        node(&taken);
        // In the container, so that the guest sends as well.
        told(&task, "until ping -c 1 -W 1 10.77.0.1; do sleep 0.2; done");
        same(&task, &namespace.path());
    }
    task.destroy();
    assert_eq!(namespace.whole(), before);
}
