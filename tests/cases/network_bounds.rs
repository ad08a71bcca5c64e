//! Networks at the edge of what there may be, and beyond it: the guest has exactly that, or
//! Create is refused with the reason. The namespace is left as it was either way.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use husk_tests::dump::of_guest;
use husk_tests::network::{Namespace, node, same, told};
use husk_tests::process::DEADLINE;
use husk_tests::{Container, Node, Runtime};

/// Has a container in the namespace refused.
#[track_caller]
fn refused(namespace: &Namespace, words: &[&str]) {
    let before = namespace.whole();
    let network = format!("network:{}", namespace.path());
    Container::new(Runtime::Husk, &["true"])
        .with(&["--with-ns", &network])
        .run()
        .failed_saying(words);
    assert_eq!(namespace.whole(), before);
}

/// Runs a container in the namespace, which is to have what is there.
#[track_caller]
fn mirrored(namespace: &Namespace) -> Vec<String> {
    let before = namespace.whole();
    let task = namespace.run();
    let (host, guest) = (namespace.network(), of_guest(&task));
    assert_eq!(guest, host);
    task.destroy();
    assert_eq!(namespace.whole(), before);
    guest
}

#[test]
fn a_hundred_links_are_too_many() {
    let _node = Node::enter();
    let add = "for i in $(seq 100); do n link add many$i type dummy; n link set many$i up; done";
    let namespace = Namespace::new("many", add);
    refused(&namespace, &["100 links", "at most 16", "take some out"]);
}

#[test]
fn a_seventeenth_link_waits_for_one_to_leave() {
    let entered = Node::enter();
    let add = "for i in $(seq 16); do n link add full$i type dummy; n link set full$i up; done";
    let namespace = Namespace::new("full", add);
    let task = namespace.run();
    assert_eq!(of_guest(&task), namespace.network());
    node("ip -n full link add beyond type dummy; ip -n full link set beyond up");
    let log = entered.log_with("link beyond:");
    let warning = log.lines().find(|line| line.contains("link beyond:"));
    let warning = warning.unwrap_or_default();
    assert!(warning.contains("level=warning"), "{warning}");
    // The others are followed all the same.
    node("ip -n full addr add 10.77.0.2/24 dev full16");
    let mut there = namespace.network();
    there.retain(|line| !line.contains("beyond"));
    let deadline = Instant::now() + DEADLINE;
    while of_guest(&task) != there {
        assert!(Instant::now() < deadline, "{:#?}", of_guest(&task));
    }
    node("ip -n full link del full3");
    let guest = same(&task, &namespace.path());
    let carried = guest.iter().any(|line| line.starts_with("beyond mtu"));
    assert!(carried, "{guest:#?}");
    task.destroy();
    let left = namespace.whole();
    assert!(!left.contains("clsact") && !left.contains("husk"), "{left}");
}

#[test]
fn five_thousand_routes_are_the_guests_too() {
    let _node = Node::enter();
    let add = "n link add eth0 type dummy; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up
        for i in $(seq 0 4999); do echo route add 10.$((100 + i / 256)).$((i % 256)).0/24 via 10.77.0.1
        done | ip -n routed -batch -";
    let namespace = Namespace::new("routed", add);
    let guest = mirrored(&namespace);
    let routes = guest.iter().filter(|line| line.contains("via 10.77.0.1"));
    assert_eq!(routes.count(), 5000);
}

#[test]
fn the_least_and_the_greatest_mtu_and_one_address_twice() {
    let _node = Node::enter();
    let add = "ip link add least-far type veth peer name least netns edges
        ip link add most-far type veth peer name most netns edges
        n link set least mtu 68; n link set most mtu 65535
        n addr add 10.77.0.2/32 dev least; n addr add 10.77.0.2/32 dev most
        ip link set least-far up; ip link set most-far up; n link set least up; n link set most up";
    let namespace = Namespace::new("edges", add);
    let guest = mirrored(&namespace);
    for words in ["least mtu 68 ", "most mtu 65535 "] {
        let has = guest.iter().any(|line| line.starts_with(words));
        assert!(has, "{words}: {guest:#?}");
    }
}

#[test]
fn a_path_that_is_no_network_namespace_is_refused_by_its_name() {
    let _node = Node::enter();
    for (path, problem) in [
        ("/no/such/path", "No such file"),
        ("/etc/hostname", "not a network namespace"),
        ("/proc/self/ns/uts", "not a network namespace"),
    ] {
        Container::husk(&["true"])
            .with(&["--with-ns", &format!("network:{path}")])
            .run()
            .failed_saying(&[path, problem]);
    }
}

#[test]
fn without_a_tun_device_the_reason_is_told() {
    let _node = Node::enter();
    let add = "n link add eth0 type dummy; n link set eth0 up";
    let namespace = Namespace::new("tunless", add);
    let (tun, aside) = ("/dev/net/tun", "/dev/net/tun-aside");
    fs::rename(tun, aside).expect("the node has one");
    let outcome = std::panic::catch_unwind(|| {
        refused(&namespace, &["tap", "eth0", "is the tun module loaded"]);
    });
    fs::rename(aside, tun).expect("it comes back");
    outcome.expect("a refusal with the reason");
    mirrored(&namespace);
}

#[test]
fn links_that_come_and_go_meanwhile_do_no_harm() {
    let _node = Node::enter();
    let add = "n link add eth0 type dummy; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    let namespace = Namespace::new("restless", add);
    let before = namespace.whole();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                node(
                    "ip -n restless link add fleeting type dummy; ip -n restless link set fleeting up
                     ip -n restless link del fleeting",
                );
            }
        });
        let started = std::panic::catch_unwind(|| namespace.run());
        stop.store(true, Ordering::Relaxed);
        let task = started.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let eth0 = told(&task, "ip -o addr show dev eth0");
        assert!(eth0.contains("10.77.0.2/24"), "{eth0}");
        task.destroy();
    });
    assert_eq!(namespace.whole(), before);
}

#[test]
fn a_link_that_no_machine_can_have_is_refused_by_its_name() {
    let _node = Node::enter();
    let add = "ip link add stacked-far type veth peer name eth0 netns stacked; n link set eth0 up";
    let namespace = Namespace::new("stacked", add);
    // Its frames arrive at eth0, which is the guest's, and are told apart by a list.
    node(
        "ip -n stacked link add link eth0 name some0 type macvlan mode source; ip -n stacked link set some0 up",
    );
    refused(
        &namespace,
        &["link some0", "a macvlan made on another link"],
    );
    node("ip -n stacked link del some0; ip link set stacked-far up");
    // So are they if it is a tunnel, whatever it was made on.
    node("ip -n stacked link add vx0 type vxlan id 7 dstport 4789; ip -n stacked link set vx0 up");
    namespace.settle();
    refused(&namespace, &["link vx0", "a vxlan made on another link"]);
    node("ip -n stacked link del vx0");
    // Its packets become its own behind any redirect.
    node("ip link add link stacked-far name net1 netns stacked type ipvlan mode l3s");
    node("ip -n stacked link set net1 up");
    namespace.settle();
    refused(&namespace, &["link net1", "mode l3s"]);
    // What is down does no harm.
    node("ip -n stacked link set net1 down");
    let task = namespace.run();
    let guest = told(&task, "ls /sys/class/net");
    assert!(guest.contains("eth0") && !guest.contains("net1"), "{guest}");
    task.destroy();
}

/// Takes from the node's kernel what redirects all packets alike, until dropped.
struct WithoutMatchall;

impl WithoutMatchall {
    #[track_caller]
    fn new() -> Self {
        let without = Self;
        node("modprobe -r cls_matchall; modprobe cls_u32
            for m in $(find /lib/modules -name 'cls_matchall.ko*'); do mount --bind /dev/null $m; done");
        without
    }
}

impl Drop for WithoutMatchall {
    fn drop(&mut self) {
        node("umount $(find /lib/modules -name 'cls_matchall.ko*') || :");
    }
}

#[test]
fn without_matchall_u32_redirects() {
    let _node = Node::enter();
    let _without = WithoutMatchall::new();
    let add = "ip link add u32-far type veth peer name eth0 netns u32; ip link set u32-far up
        ip addr add 10.77.0.1/24 dev u32-far; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up
        ip addr add fd77::1/64 dev u32-far nodad; n addr add fd77::2/64 dev eth0 nodad";
    let namespace = Namespace::new("u32", add);
    let before = namespace.whole();
    let task = namespace.run();
    let running = namespace.whole();
    assert!(running.contains("pref 65520 u32"), "{running}");
    assert!(!running.contains("matchall"), "{running}");
    told(
        &task,
        "ping -c 1 -W 20 10.77.0.1 && ping -6 -c 1 -W 20 fd77::1",
    );
    task.destroy();
    assert_eq!(namespace.whole(), before);
}
