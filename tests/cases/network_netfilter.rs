//! Packet filters that somebody put into the pod's network namespace act in the guest.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::config::Config;
use husk_tests::hold::{self, Hold};
use husk_tests::network::{Namespace, THE_NODES_PROGRAMS, node, told};
use husk_tests::process::{self, DEADLINE};
use husk_tests::{Container, Node, Runtime, Task};

/// Both kinds of rules as the node's own programs tell them, but for counters and times.
const SAVE: &str = "for v in iptables ip6tables; do $IN/usr/sbin/$v-nft-save; done \
    | sed '/^#/d; s/ \\[[0-9]*:[0-9]*\\]//'";

/// What the node's programs tell of a namespace.
#[track_caller]
fn of_namespace(path: &str) -> String {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={path}"));
    nsenter.args(["sh", "-c", &SAVE.replace("$IN", "")]);
    process::run(nsenter).succeeded().text()
}

/// What they tell in a container.
fn of_guest() -> String {
    SAVE.replace("$IN", "chroot /node ")
}

/// Waits until the guest has the filters of a namespace; returns them.
#[track_caller]
fn same(task: &Task, namespace: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (host, guest) = (of_namespace(namespace), told(task, &of_guest()));
        if host == guest {
            return guest;
        }
        assert!(Instant::now() < deadline, "{guest}\nis not\n{host}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// What a server at a port of the pod says to the node.
fn dial(port: u16) -> String {
    let mut nc = Command::new("busybox");
    nc.args(["nc", "-w", "20", "10.77.0.2", &port.to_string()]);
    process::run(nc).text()
}

#[test]
fn rules_of_the_namespace_act_in_the_guest_and_follow_its_changes() {
    let _node = Node::enter();
    let add = "ip link add wired-far type veth peer name eth0 netns wired
        ip addr add 10.77.0.1/24 dev wired-far; ip link set wired-far up
        n addr add 10.77.0.2/24 dev eth0; n link set eth0 up
        i() { ip netns exec wired $*; }
        i iptables-nft -t nat -N MESH
        i iptables-nft -t nat -A PREROUTING -p tcp -i eth0 -j MESH
        i iptables-nft -t nat -A MESH -p tcp --dport 80 -m comment --comment in -j REDIRECT --to-ports 8080
        i iptables-nft -t nat -A OUTPUT -p tcp -m owner ! --uid-owner 1337 --dport 15999 -j REDIRECT --to-ports 8080
        i iptables-nft -A INPUT -p tcp -m multiport --dports 81,82 -j REJECT --reject-with tcp-reset
        i iptables-nft -t mangle -P FORWARD DROP
        i ip6tables-nft -A INPUT ! -p tcp -m conntrack --ctstate INVALID -j DROP";
    let namespace = Namespace::new("wired", add);
    let (path, whole) = (namespace.path(), namespace.whole());
    let before = of_namespace(&path);
    let task = namespace.run_beside_the_nodes_programs(Runtime::Husk);
    assert_eq!(told(&task, &of_guest()), before);
    let serve = "for port in 8080 81 83; do nc -ll -p $port -e echo $port & done >/dev/null 2>&1
        until [ $(netstat -lnt | grep -c LISTEN) = 3 ]; do sleep 0.1; done";
    told(&task, serve);
    assert_eq!(dial(80), "8080\n");
    assert_eq!(dial(83), "83\n");
    assert_eq!(dial(81), "");
    assert_eq!(told(&task, "nc 10.77.0.2 15999 </dev/null"), "8080\n");

    let rule = "INPUT -p tcp --dport 83 -j REJECT --reject-with tcp-reset";
    node(&format!("ip netns exec wired iptables-nft -A {rule}"));
    assert!(same(&task, &path).contains("83"));
    assert_eq!(dial(83), "");
    node("ip netns exec wired iptables-nft -F INPUT");
    same(&task, &path);
    assert_eq!((dial(83), dial(81)), ("83\n".into(), "81\n".into()));
    task.destroy();
    assert_eq!(namespace.whole(), whole);
}

#[test]
fn rules_that_come_between_create_and_start_are_there_when_the_program_begins() {
    let _node = Node::enter();
    let mut hold = Hold::install();
    let container = Container::husk(&["sh", "-c", &of_guest()])
        .with(hold::FLAGS)
        .with(THE_NODES_PROGRAMS);
    let client = container.start();
    hold.wait();
    let task = container.task();
    let pid = task.pid();
    node(&format!(
        "ip link add late-far type veth peer name eth0 netns {pid}
        i() {{ nsenter --net=/proc/{pid}/ns/net $*; }}
        i ip addr add 10.77.0.2/24 dev eth0; i ip link set eth0 up
        i iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080"
    ));
    let host = of_namespace(&format!("/proc/{pid}/ns/net"));
    hold.release();
    let guest = client.finish().succeeded().text();
    assert_eq!(guest, host);
    assert!(guest.contains("--to-ports 8080"), "{guest}");
}

#[test]
fn a_rule_that_the_guest_cannot_have_is_named() {
    let entered = Node::enter();
    let add = "ip link add odd-far type veth peer name eth0 netns odd; n link set eth0 up
        ip netns exec odd iptables-nft -A OUTPUT -j ACCEPT
        ip netns exec odd iptables-nft -A OUTPUT -p tcp -j LOG
        ip netns exec odd iptables-legacy -t nat -A OUTPUT -p tcp -j ACCEPT; rm /run/xtables.lock";
    let namespace = Namespace::new("odd", add);
    let network = format!("network:{}", namespace.path());
    let container = |command| {
        let container = Container::new(Runtime::Husk, command);
        container.with(&["--with-ns", &network])
    };
    container(&["true"]).run().failed_saying(&[
        "nftables table ip filter",
        "rule 2 of chain OUTPUT",
        "target LOG",
        "set `netfilter` to \"ignore\"",
    ]);
    let config = Config::set("netfilter = \"ignore\"\n");
    container(&["true"]).run().succeeded();
    drop(config);
    node("ip netns exec odd iptables-nft -F OUTPUT");
    container(&["true"]).run().succeeded();
    entered.log_with("rules of iptables-legacy (ip nat)");
}
