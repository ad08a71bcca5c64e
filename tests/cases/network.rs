//! The pod's network: what is in its namespace the guest has too, packets flow, and the
//! namespace is left as it was made.

use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::cri::api;
use husk_tests::dump::{self, of_guest, of_namespace};
use husk_tests::network::{Namespace, echo_datagrams, node, same, told};
use husk_tests::process::{self, DEADLINE};
use husk_tests::{Container, Node, PodPlan, Runtime};

/// Links with all that a plugin could think of.
const RICH: &str = "
    ip link add veth-a type veth peer name eth0 netns rich
    ip link add veth-b type veth peer name net1 netns rich
    ip addr add 10.77.0.1/24 dev veth-a
    ip addr add fd77::1/64 dev veth-a nodad
    ip addr add 10.78.0.1/24 dev veth-b
    ip link set veth-a up
    ip link set veth-b up
    n link set eth0 mtu 1450 addr 02:00:00:00:00:07 alias first txqueuelen 500 promisc on
    n link set net1 alias second txqueuelen 77 group 7 allmulticast on
    n link add net2 type dummy; n link set net2 arp off up
    n addr add 10.77.0.2/24 dev eth0
    n addr add 10.77.0.3/24 dev eth0
    n addr add 10.77.9.9/32 dev lo
    n addr add fd77::2/64 dev eth0
    n addr add 10.78.0.2/24 dev net1 noprefixroute
    n link set eth0 up
    n link set net1 up
    n route add default via 10.77.0.1
    n route add 10.78.0.1 dev net1 scope link src 10.78.0.2
    n route add 10.99.0.0/16 via 10.78.0.1 metric 77 proto static mtu 1300
    n route add default via 10.78.0.1 dev net1 table 100
    n route add default via 10.78.0.1 dev net1 table 1000
    n route add blackhole 10.98.0.0/16
    n route add 10.95.0.0/16 proto bird nexthop via 10.77.0.1 dev eth0 weight 3 nexthop via 10.78.0.1 dev net1 weight 5
    n route add 10.94.0.0/16 via 10.77.0.1 mtu lock 1200 advmss 1100
    n route add 10.96.0.0/16 via 192.0.2.1 dev eth0 onlink
    n -6 route add default via fd77::1 metric 55
    n -6 route add fd99::/64 via fd77::1 table 100 mtu 1290 proto static pref high
    n -6 route add fd95::/64 nexthop via fd77::1 dev eth0 weight 2 nexthop via fd77::9 dev eth0 weight 4
    n rule add from 10.78.0.2 lookup 100
    n rule add from 10.79.0.0/16 lookup 1000 prio 500
    n rule add fwmark 7/0xff lookup 100 prio 600
    n rule add iif eth0 lookup 100 prio 601
    n rule add oif net1 lookup 100 prio 602
    n rule add uidrange 1000-1999 lookup 100 prio 603
    n rule add ipproto tcp lookup 100 prio 604
    n rule add ipproto udp sport 1000-2000 lookup 100 prio 605
    n rule add ipproto tcp dport 53 lookup 100 prio 606
    n rule add to 10.94.0.0/16 tos 0x10 prohibit prio 606
    n -6 rule add from fd78::2 lookup 100
    n -6 rule add uidrange 2000-2999 ipproto udp dport 1-9 lookup 100 prio 700
    n neigh add 10.77.0.200 lladdr 02:00:00:00:00:aa dev eth0 nud permanent";

#[test]
fn the_guest_has_what_is_in_the_namespace_which_stays_as_it_was() {
    let _node = Node::enter();
    let namespace = Namespace::new("rich", RICH);
    let before = namespace.whole();
    let task = namespace.run();
    let guest = of_guest(&task);
    assert_eq!(guest, namespace.network());
    // That nothing is left out by those who tell.
    for words in [
        "<BROADCAST,MULTICAST,PROMISC,UP>",
        "NOARP",
        "ALLMULTI",
        "group 7 qlen 77 alias second",
        "proto static scope global metric 77 mtu 1300",
        "weight 5",
        "nexthop via fd77::9 dev eth0 weight 4",
        "mtu lock 1200 advmss 1100",
        "pref high",
        "fwmark 0x7/0xff",
        "iif eth0",
        "oif net1",
        "uidrange 1000-1999",
        "ipproto udp sport 1000-2000",
        "dport 53",
        "PERMANENT",
    ] {
        let told = guest.iter().any(|line| line.contains(words));
        assert!(told, "no {words} in {guest:#?}");
    }
    for ping in ["10.77.0.1", "10.78.0.1", "fd77::1"] {
        told(&task, &format!("ping -c 1 -W 20 {ping}"));
    }
    for address in ["10.77.0.2", "10.77.0.3", "10.78.0.2", "fd77::2"] {
        node(&format!("busybox ping -c 1 -W 20 {address}"));
    }
    task.destroy();
    assert_eq!(namespace.whole(), before);
}

#[test]
fn datagrams_of_all_sizes_short_connections_and_one_answer_to_who_has() {
    let _node = Node::enter();
    let add = "ip link add sized-far type veth peer name eth0 netns sized
        ip link set sized-far mtu 1450 up; n link set eth0 mtu 1450
        ip addr add 10.77.0.1/24 dev sized-far; n addr add 10.77.0.2/24 dev eth0
        n link set eth0 up";
    let namespace = Namespace::new("sized", add);
    let task = namespace.run_beside_the_nodes_programs(Runtime::Husk);
    echo_datagrams(&task, 7);
    let socket = UdpSocket::bind("10.77.0.1:0").expect("a socket");
    socket.connect("10.77.0.2:7").expect("a route");
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    // Up to what fits, one byte too many, three fragments, seven.
    let sizes = [1, 100, 1422, 1423, 4000, 9000];
    for size in sizes {
        let sent: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let mut answer = [0; 9000];
        let deadline = Instant::now() + DEADLINE;
        // Until the server is there, the datagrams are lost.
        let length = loop {
            let asked = socket.send(&sent).and_then(|_| socket.recv(&mut answer));
            match asked {
                // A second answer, to what was asked again for the first one's delay.
                Ok(length) if length < size && sizes.contains(&length) => {}
                Ok(length) => break length,
                Err(_) => assert!(Instant::now() < deadline, "no answer to {size} bytes"),
            }
        };
        assert_eq!(answer[..length], sent, "{size} bytes");
    }
    told(&task, "nc -ll -p 7001 -e echo served >/dev/null 2>&1 &");
    let connect = "n=0; while [ $n -lt 100 ]; do nc 10.77.0.2 7001 </dev/null && n=$((n+1)); done";
    let mut many = Command::new("busybox");
    many.args(["sh", "-c", connect]);
    let served = process::run(many).text();
    assert_eq!(served, "served\n".repeat(100));
    // An answer that takes longer than a second is not counted.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut arping = Command::new("busybox");
        arping.args(["arping", "-c", "3", "-I", "sized-far", "10.77.0.2"]);
        let answers = process::run(arping).text();
        if answers.contains("Received 3 re") {
            break;
        }
        let late = (0..3).any(|count| answers.contains(&format!("Received {count} re")));
        assert!(late && Instant::now() < deadline, "{answers}");
    }
    task.destroy();
}

#[test]
fn a_killed_shim_leaves_the_namespace_as_it_was() {
    let _node = Node::enter();
    let add = "ip link add veth-a type veth peer name eth0 netns left; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    let namespace = Namespace::new("left", add);
    // Somebody else's discipline stays.
    node("ip netns exec left tc qdisc add dev eth0 clsact");
    let before = namespace.whole();
    let task = namespace.run();
    assert_ne!(namespace.whole(), before);
    process::signal(process::only("containerd-shim-rust-v2"), "KILL");
    let deadline = Instant::now() + DEADLINE;
    while namespace.whole() != before {
        assert!(Instant::now() < deadline, "{}", namespace.whole());
        thread::sleep(Duration::from_millis(200));
    }
    task.forgotten();
}

#[test]
fn an_ingress_discipline_of_somebody_elses_is_used_and_left() {
    let _node = Node::enter();
    let add = "ip link add ours-far type veth peer name eth0 netns theirs
        ip addr add 10.77.0.1/24 dev ours-far; ip link set ours-far up
        n addr add 10.77.0.2/24 dev eth0; n link set eth0 up
        t() { ip netns exec theirs tc $*; }
        t qdisc add dev eth0 ingress
        t filter add dev eth0 ingress pref 7 protocol ip flower dst_ip 10.77.0.3 action drop";
    let namespace = Namespace::new("theirs", add);
    let before = namespace.whole();
    assert!(before.contains("qdisc ingress") && before.contains("10.77.0.3"));
    let task = namespace.run();
    told(&task, "ping -c 1 -W 20 10.77.0.1");
    node("busybox ping -c 1 -W 20 10.77.0.2");
    let meanwhile = namespace.whole();
    for filter in ["10.77.0.3", "mirred"] {
        assert!(meanwhile.contains(filter), "no {filter} in {meanwhile}");
    }
    task.destroy();
    assert_eq!(namespace.whole(), before);
}

#[test]
fn links_have_the_names_and_the_order_of_the_namespaces() {
    let _node = Node::enter();
    const ORDER: &str =
        "ip -o link | sort -n | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/' | grep -v husk";
    // Neither in the order of their names nor made in the order of their numbers.
    let add = "for l in 'zeta index 31' 'alpha index 52' 'mid index 23'; do n link add $l type dummy; done
        for l in zeta alpha mid; do n link set $l up; done";
    let namespace = Namespace::new("order", add);
    assert_eq!(namespace.told(ORDER), "lo\nmid\nzeta\nalpha\n");
    let task = namespace.run();
    assert_eq!(told(&task, ORDER), namespace.told(ORDER));
    for change in ["add beta index 60", "del zeta", "add zeta index 61"] {
        let (verb, link) = change.split_once(' ').expect("two words");
        node(&format!("ip -n order link {verb} {link} type dummy"));
        same(&task, &namespace.path());
        assert_eq!(told(&task, ORDER), namespace.told(ORDER), "{change}");
    }
    task.destroy();
}

#[test]
fn without_links_there_is_no_device() {
    let _node = Node::enter();
    let listed = Container::new(Runtime::Husk, &["ls", "/sys/class/net"]).run();
    assert_eq!(listed.succeeded().text(), "lo\n");
}

#[test]
fn a_pod_without_links_has_the_kernel_parameters_of_its_namespace() {
    let _node = Node::enter();
    const PARAMETERS: &str = "cd /proc/sys/net; grep . core/somaxconn; for of in all default lo; do
        grep . ipv4/conf/$of/forwarding ipv4/conf/$of/rp_filter ipv4/conf/$of/disable_policy
        grep . ipv6/conf/$of/disable_ipv6 ipv6/conf/$of/use_tempaddr; done; cat /proc/net/if_inet6";
    let set = "sysctl() { ip netns exec bare sysctl -q -w $*; }";
    let namespace = Namespace::new(
        "bare",
        &format!(
            "{set}; sysctl net.core.somaxconn=500 net.ipv4.conf.lo.rp_filter=2
            sysctl net.ipv4.conf.lo.disable_policy=0 net.ipv6.conf.all.disable_ipv6=1"
        ),
    );
    let network = format!("network:{}", namespace.path());
    Runtime::both(|runtime| {
        let container = Container::new(runtime, &["sh", "-c", PARAMETERS]);
        let told = container.with(&["--with-ns", &network]).run();
        let told = told.succeeded().text();
        assert!(told.contains("ipv4/conf/lo/rp_filter:2\n"), "{told}");
        assert_eq!(told, namespace.told(PARAMETERS), "{runtime:?}");
    });
    // And what changes.
    let task = namespace.run();
    node(&format!(
        "{set}; sysctl net.ipv4.conf.lo.rp_filter=0 net.ipv6.conf.all.disable_ipv6=0"
    ));
    let (there, deadline) = (namespace.told(PARAMETERS), Instant::now() + DEADLINE);
    assert!(there.contains("ipv6/conf/lo/disable_ipv6:0\n"), "{there}");
    loop {
        let guest = told(&task, PARAMETERS);
        if guest == there {
            break;
        }
        assert!(Instant::now() < deadline, "{guest} is not {there}");
    }
    assert_eq!(told(&task, "ls /sys/class/net"), "lo\n");
    task.destroy();
}

#[test]
fn a_pod_has_the_network_that_cni_gave_it() {
    let _node = Node::enter();
    let mut plan = PodPlan::new(Runtime::Husk);
    let sysctl = ("net.ipv4.ip_local_port_range", "20000 30000");
    let sysctls = &mut plan.linux().sysctls;
    sysctls.insert(sysctl.0.into(), sysctl.1.into());
    let pod = plan.run();
    let mut container = pod.plan(&["sleep", "infinity"]);
    container.mounts.push(api::Mount {
        host_path: "/".into(),
        container_path: "/node".into(),
        readonly: true,
        ..Default::default()
    });
    let container = pod.start(container);
    let range = container.told("cat /proc/sys/net/ipv4/ip_local_port_range");
    assert_eq!(range, "20000\t30000\n");
    let namespace = format!("/proc/{}/ns/net", process::only("husk-vmm"));
    let guest = dump::common(&container.told(&dump::script()));
    assert_eq!(guest, of_namespace(&namespace));
    let address = &pod.addresses()[0];
    let own = format!("eth0 inet {address}/16");
    assert!(guest.iter().any(|line| line.starts_with(&own)), "{guest:?}");
    assert!(
        guest
            .iter()
            .any(|line| line.starts_with("unicast default via 10.88.0.1 dev eth0"))
    );
    node(&format!("busybox ping -c 1 -W 20 {address}"));
    pod.remove();
}
