//! Links that are a machine's end already: a macvtap, and a tap that nobody holds, are used as
//! they are. A tap that a program holds is carried like any other link.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::Node;
use husk_tests::network::{Chain, Namespace, comes_back, lines, node, same, send_back, told};
use husk_tests::process::{DEADLINE, Running};
use serde_json::json;

/// Sends what it reads from each of two taps to the other, as a network of a program does. The
/// second one is in a namespace: 308 is setns(2).
const WIRE: &str = r#"
    sub tap {
        open my $tap, "+<", "/dev/net/tun" or die "tun: $!";
        ioctl $tap, 0x400454ca, pack "Z16 s x22", shift, 0x1002 or die "TUNSETIFF: $!";
        $tap
    }
    my $here = tap("held-far");
    open my $namespace, "<", "/run/netns/held" or die "namespace: $!";
    syscall(308, fileno $namespace, 0x40000000) == 0 or die "setns: $!";
    my $there = tap("eth0");
    for (;;) {
        my $ready = "";
        vec($ready, fileno $_, 1) = 1 for $here, $there;
        select $ready, undef, undef, undef;
        for ([$here, $there], [$there, $here]) {
            my ($from, $to, $frame) = @$_;
            vec($ready, fileno $from, 1) and sysread $from, $frame, 65536 and syswrite $to, $frame;
        }
    }"#;

/// Takes a link of the node away when dropped.
struct Link(&'static str);

impl Drop for Link {
    fn drop(&mut self) {
        node(&format!("ip link del {} || :", self.0));
    }
}

/// All that is told of a namespace with so many taps that nobody holds, once the kernel has told
/// that they have no carrier: up to a second after they are up.
fn whole_without_carrier(namespace: &Namespace, taps: usize) -> String {
    let count = format!("[ $(ip -o link | grep -c NO-CARRIER) = {taps} ]");
    namespace.told(&format!("until {count}; do sleep 0.1; done"));
    namespace.whole()
}

/// That the links of the namespace have nothing of ours beside them.
#[track_caller]
fn assert_bare(namespace: &Namespace) {
    let whole = namespace.whole();
    for ours in ["husk", "clsact", "mirred"] {
        assert!(!whole.contains(ours), "{whole}");
    }
}

#[test]
fn a_macvtap_is_the_machines_end_itself() {
    let _node = Node::enter();
    node(
        "modprobe macvtap; modprobe dummy; ip link add direct0 type dummy; ip link set direct0 up",
    );
    let _parent = Link("direct0");
    node("ip link add link direct0 name direct-near type macvlan mode bridge");
    node("ip addr add 10.77.0.1/24 dev direct-near; ip addr add fd77::1/64 dev direct-near nodad");
    node("ip link set direct-near up");
    let macvtap = |name: &str, subnet: u8| {
        format!(
            "ip link add link direct0 name {name} netns direct type macvtap mode bridge
             n addr add 10.77.{subnet}.2/24 dev {name}; n addr add fd77:{subnet}::2/64 dev {name} nodad
             n link set {name} up\n"
        )
    };
    let script = macvtap("eth0", 0) + "n route add default via 10.77.0.1";
    let namespace = Namespace::new("direct", &script);
    let before = namespace.whole();
    let task = namespace.run();
    same(&task, &namespace.path());
    told(
        &task,
        "ping -c 1 -W 20 10.77.0.1 && ping -6 -c 1 -W 20 fd77::1",
    );
    node("busybox ping -c 1 -W 20 10.77.0.2 >&2; busybox ping -6 -c 1 -W 20 fd77::2 >&2");
    assert_eq!(namespace.whole(), before);

    // Segments that the machine leaves to the host to cut, and the other way round.
    send_back(&task);
    comes_back("10.77.0.2");

    // One more, and it goes again.
    node(&format!(
        "n() {{ ip -n direct \"$@\"; }}; {}",
        macvtap("net1", 1)
    ));
    namespace.settle();
    same(&task, &namespace.path());
    node("ip addr add 10.77.1.1/24 dev direct-near");
    told(&task, "ping -c 1 -W 20 10.77.1.1");
    assert_bare(&namespace);
    node("ip -n direct link del net1");
    let left = same(&task, &namespace.path());
    assert!(!left.iter().any(|line| line.contains("net1")), "{left:#?}");
    task.destroy();
    assert_eq!(namespace.whole(), before);
}

#[test]
fn a_tap_that_nobody_holds_is_used_itself() {
    let _node = Node::enter();
    let tap = |name: &str, subnet: u8, queues: &str| {
        format!(
            "n tuntap add {name} mode tap {queues}
             ip netns exec free sysctl -q -w net.ipv6.conf.{name}.disable_ipv6=1
             n addr add 10.78.{subnet}.2/24 dev {name}; n link set {name} up\n"
        )
    };
    let script = tap("tap0", 0, "") + &tap("tap1", 1, "multi_queue");
    let namespace = Namespace::new("free", &script);
    // Each tap is opened with a header of virtio-net, and says so from then on.
    let before = whole_without_carrier(&namespace, 2).replace("vnet_hdr off", "vnet_hdr on");
    let task = namespace.run();
    same(&task, &namespace.path());
    node(&format!(
        "n() {{ ip -n free \"$@\"; }}; {}",
        tap("tap2", 2, "")
    ));
    same(&task, &namespace.path());
    assert_bare(&namespace);
    // Whose address it is, the guest answers: the namespace, which has it too, was asked by itself.
    for tap in ["tap0", "tap1", "tap2"] {
        let subnet = &tap[3..];
        let received = format!("sed -n 's/ *{tap}: *[0-9]* *\\([0-9]*\\).*/\\1/p' /proc/net/dev");
        let count = || {
            namespace
                .told(&received)
                .trim()
                .parse::<u64>()
                .expect("a number")
        };
        let before = count();
        namespace.told(&format!("arping -D -c 3 -I {tap} 10.78.{subnet}.2"));
        let deadline = Instant::now() + DEADLINE;
        while count() < before + 3 {
            assert!(
                Instant::now() < deadline,
                "{before} frames of the guest, then {}",
                count()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
    node("ip -n free link del tap2");
    same(&task, &namespace.path());
    task.destroy();
    assert_eq!(whole_without_carrier(&namespace, 2), before);
}

#[test]
fn a_tap_of_cnis_own_plugin_is_used_itself() {
    let plugin = "/usr/lib/cni/tap";
    if !Path::new(plugin).exists() {
        eprintln!("skipped: no {plugin} here, which CNI's plugins have since 1.4");
        return;
    }
    let _node = Node::enter();
    let namespace = Namespace::new("own", "");
    namespace.told("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1");
    let ipam = json!({ "type": "static", "addresses": [{ "address": "10.76.0.2/24" }] });
    let tap = json!({ "type": "tap", "mac": "02:00:00:00:76:02", "mtu": 1400, "multiQueue": true,
        "ipam": ipam });
    let chain = Chain::add(&namespace, "eth0", json!([tap]));
    let before = whole_without_carrier(&namespace, 1).replace("vnet_hdr off", "vnet_hdr on");
    assert_eq!(chain.verdicts(), [""]);
    let task = namespace.run();
    let guest = same(&task, &namespace.path());
    for its_own in ["eth0 inet 10.76.0.2/24", "02:00:00:00:76:02", "mtu 1400"] {
        assert!(
            guest.iter().any(|line| line.contains(its_own)),
            "{its_own}: {guest:#?}"
        );
    }
    assert_bare(&namespace);
    assert_eq!(chain.verdicts(), [""]);
    task.destroy();
    assert_eq!(whole_without_carrier(&namespace, 1), before);
    chain.del();
    assert_eq!(namespace.told("ip -o link | wc -l"), "1\n");
}

#[test]
fn a_tap_that_a_program_holds_is_carried_like_any_link() {
    let _node = Node::enter();
    node(
        "ip tuntap add held-far mode tap; ip addr add 10.79.0.1/24 dev held-far; ip link set held-far up",
    );
    let _far = Link("held-far");
    let namespace = Namespace::new(
        "held",
        "n tuntap add eth0 mode tap; n link set eth0 up; n addr add 10.79.0.2/24 dev eth0",
    );
    let mut perl = Command::new("perl");
    perl.args(["-e", WIRE]);
    let _wire = Running::start(perl);
    node("until busybox ping -c 1 -W 1 10.79.0.2 >&2; do :; done");
    namespace.settle();
    let before = namespace.whole();
    let task = namespace.run();
    same(&task, &namespace.path());
    told(&task, "ping -c 3 -W 20 10.79.0.1");
    node("busybox ping -c 3 -W 20 10.79.0.2 >&2");
    assert!(
        namespace.whole().contains("husk"),
        "its frames go to the machine by a tap"
    );
    task.destroy();
    assert_eq!(lines(&before), lines(&namespace.whole()));
    // The namespace has its end again.
    node("busybox ping -c 1 -W 20 10.79.0.2 >&2");
}
