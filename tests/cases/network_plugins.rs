//! CNI's own plugins: whatever link they make, the guest has it, and they find it as they left it.

use std::path::Path;
use std::time::Instant;

use husk_tests::Node;
use husk_tests::dump::of_guest;
use husk_tests::network::{Chain, Namespace, lines, node, same, told};
use husk_tests::process::DEADLINE;
use serde_json::{Value, json};

/// Addresses from a range of the plugin's own, with a default route for one of them only.
fn ipam(subnets: &[&str]) -> Value {
    let ranges = subnets.iter().map(|subnet| json!([{ "subnet": subnet }]));
    json!({ "type": "host-local", "ranges": ranges.collect::<Vec<_>>(), "dataDir": "/run/plugins" })
}

/// Two links of the node that are joined; the second has the address, of what a plugin gives away.
#[track_caller]
fn uplink(name: &str, address: &str) {
    node(&format!(
        "ip link add {name} type veth peer name {name}-far; ip link set {name} up;
         ip link set {name}-far up; ip address add {address} dev {name}-far"
    ));
}

/// Takes it away when dropped, and what belongs to no link.
struct Uplinks(&'static [&'static str]);

impl Drop for Uplinks {
    fn drop(&mut self) {
        for link in self.0 {
            node(&format!("ip link del {link} || :"));
        }
        node("rm -rf /run/plugins /run/cni");
    }
}

#[test]
fn links_of_six_plugins_are_carried_side_by_side() {
    let _node = Node::enter();
    let _uplinks = Uplinks(&["six0", "six-far", "up2", "up3", "up4"]);
    uplink("up2", "10.82.0.1/24");
    uplink("up3", "10.83.0.1/24");
    uplink("up4", "10.84.0.1/24");
    node("ip link add link up4-far name up4-vlan type vlan id 7; ip link set up4-vlan up");
    node("ip address add 10.85.0.1/24 dev up4-vlan");
    let namespace = Namespace::new("six", "");
    node("ip link add six-host type veth peer name six-far; ip link set six-far up");
    node("ip address add 10.86.0.1/24 dev six-far");
    let fixed = json!({ "type": "static", "addresses": [{ "address": "10.86.0.2/24" }] });
    let add = |interface, plugins| Chain::add(&namespace, interface, plugins);
    let chains = [
        add(
            "eth0",
            json!([
                { "type": "bridge", "bridge": "six0", "isGateway": true, "isDefaultGateway": true,
                  "ipMasq": false, "mtu": 1400, "ipam": ipam(&["10.80.0.0/24", "fd80::/64"]) },
                { "type": "tuning", "mac": "02:00:00:00:80:02", "promisc": true },
            ]),
        ),
        add(
            "net1",
            json!([
                { "type": "ptp", "ipMasq": false, "ipam": ipam(&["10.81.0.0/24"]) },
                { "type": "portmap", "capabilities": { "portMappings": true },
                  "runtimeConfig": { "portMappings":
                    [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] } },
            ]),
        ),
        add(
            "net2",
            json!([{ "type": "macvlan", "master": "up2", "ipam": ipam(&["10.82.0.0/24"]) }]),
        ),
        add(
            "net3",
            json!([{ "type": "ipvlan", "master": "up3", "ipam": ipam(&["10.83.0.0/24"]) }]),
        ),
        add(
            "net4",
            json!([{ "type": "vlan", "master": "up4", "vlanId": 7, "ipam": ipam(&["10.85.0.0/24"]) }]),
        ),
        add(
            "net5",
            json!([{ "type": "host-device", "device": "six-host", "ipam": fixed }]),
        ),
    ];
    namespace.settle();
    let before = namespace.whole();
    // An older portmap misses rules for version 6, of which the interface has no address.
    let verdicts = || chains.each_ref().map(Chain::verdicts);
    let checked = verdicts();
    let complaints = checked.iter().flatten().filter(|said| !said.is_empty());
    assert!(complaints.count() <= 1, "{checked:?}");
    let task = namespace.run();
    assert_eq!(of_guest(&task), namespace.network());
    let gateways = [
        "10.80.0.1",
        "fd80::1",
        "10.81.0.1",
        "10.82.0.1",
        "10.83.0.1",
        "10.85.0.1",
        "10.86.0.1",
    ];
    for gateway in gateways {
        told(&task, &format!("ping -c 1 -W 20 {gateway}"));
    }
    // By the port of the node to a server in the guest.
    told(&task, "nc -ll -p 80 -e echo served >/dev/null 2>&1 &");
    let answer = "until nc 10.80.0.1 8080 </dev/null | grep served; do sleep 1; done";
    node(&format!("busybox sh -c '{answer}'"));
    assert_eq!(verdicts(), checked);
    task.destroy();
    assert_eq!(namespace.whole(), before);
    assert_eq!(verdicts(), checked);
    for chain in &chains {
        chain.del();
    }
    assert_eq!(namespace.told("ip -o link | wc -l"), "1\n");
}

#[test]
fn routes_by_source_limits_of_bandwidth_and_a_bridge_are_the_guests() {
    let _node = Node::enter();
    let _uplinks = Uplinks(&["up5"]);
    // In its third mode ipvlan asks the node for the way, which leads out by the link below.
    let beyond = "ip link add up5 type veth peer name up5-far netns beyond; ip link set up5 up
        ip address add 10.88.4.1/24 dev up5; ip route add 10.88.7.9 via 10.88.4.9
        n link set up5-far up; n address add 10.88.4.9/24 dev up5-far; n address add 10.88.7.9/32 dev lo
        n route add 10.88.5.0/24 via 10.88.4.1";
    let _beyond = Namespace::new("beyond", beyond);
    // And somebody's own bridge; what is by its port, the bridge has.
    let bridge = "ip link add port-far type veth peer name port0 netns sbr; ip link set port-far up
        ip addr add 10.88.6.1/24 dev port-far; n link add br0 type bridge
        n link set port0 addrgenmode none; n link set port0 master br0; n link set port0 up
        n link set br0 up; n addr add 10.88.6.2/24 dev br0";
    let namespace = Namespace::new("sbr", bridge);
    let limits = json!({ "type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
        "egressRate": 80_000_000, "egressBurst": 8_000_000 });
    let routed = |subnet: &str, to: &str| {
        let mut ipam = ipam(&[subnet]);
        ipam["routes"] = json!([{ "dst": to }]);
        ipam
    };
    let add = |interface, plugins| Chain::add(&namespace, interface, plugins);
    let chains = [
        add(
            "eth0",
            json!([{ "type": "ptp", "ipMasq": false, "ipam": routed("10.88.1.0/24", "0.0.0.0/0") }, limits]),
        ),
        add(
            "net1",
            json!([{ "type": "ptp", "ipMasq": false, "ipam": routed("10.88.2.0/24", "0.0.0.0/0") }, { "type": "sbr" }]),
        ),
        add(
            "net2",
            json!([{ "type": "ipvlan", "mode": "l3", "master": "up5", "ipam": routed("10.88.5.0/24", "10.88.7.0/24") }]),
        ),
    ];
    namespace.settle();
    let before = namespace.whole();
    // ptp misses the routes that sbr has put into another table.
    let verdicts = || chains.each_ref().map(Chain::verdicts);
    let checked = verdicts();
    assert_eq!(checked[0], ["", ""]);
    let task = namespace.run();
    let guest = of_guest(&task);
    let mut there = namespace.network();
    there.retain(|line| !line.contains("port0"));
    assert_eq!(guest, there);
    let rule = "from 10.88.2.2 lookup 100";
    assert!(guest.iter().any(|line| line.contains(rule)), "{guest:?}");
    for gateway in ["10.88.1.1", "10.88.2.1", "10.88.6.1", "10.88.7.9"] {
        told(&task, &format!("ping -c 1 -W 20 {gateway}"));
    }
    assert_eq!(verdicts(), checked);
    task.destroy();
    assert_eq!(namespace.whole(), before);
    for chain in &chains {
        chain.del();
    }
}

#[test]
fn a_vrf_is_the_guests_too_and_follows() {
    let _node = Node::enter();
    let _uplinks = Uplinks(&[]);
    let namespace = Namespace::new("vrf", "");
    let add = |interface, subnets: &[&str], more: &[Value]| {
        let ptp = json!({ "type": "ptp", "ipMasq": false, "ipam": ipam(subnets) });
        Chain::add(&namespace, interface, json!([&[ptp], more].concat()))
    };
    let in_red = [json!({ "type": "vrf", "vrfname": "red", "table": 1000 })];
    let chains = [
        add("eth0", &["10.89.1.0/24"], &[]),
        add("net1", &["10.89.2.0/24"], &in_red),
    ];
    // Of version 6 the plugin moves routes whose address is still being tried out, which newer
    // kernels refuse.
    node("ip -n vrf addr add fd89::2/64 dev net1 nodad");
    namespace.settle();
    // ptp misses the routes that vrf has put into another table.
    let verdicts = || chains.each_ref().map(Chain::verdicts);
    let checked = verdicts();
    assert_eq!((checked[0][0].as_str(), checked[1][1].as_str()), ("", ""));
    let task = namespace.run();
    let guest = of_guest(&task);
    assert_eq!(guest, namespace.network());
    assert!(
        guest.iter().any(|line| line.starts_with("red mtu")),
        "{guest:#?}"
    );
    told(&task, "ping -c 1 -W 20 10.89.1.1");
    told(&task, "ping -c 1 -W 20 -I red 10.89.2.1");
    // Only by the VRF.
    told(&task, "! ping -c 1 -W 1 10.89.2.1");
    assert_eq!(verdicts(), checked);
    // A second port comes and goes.
    let third = add("net2", &["10.89.3.0/24"], &in_red);
    same(&task, &namespace.path());
    told(&task, "ping -c 1 -W 20 -I red 10.89.3.1");
    third.del();
    same(&task, &namespace.path());
    told(&task, "ping -c 1 -W 20 -I red 10.89.2.1");
    assert_eq!(verdicts(), checked);
    // The first leaves, and has its routes where all others have theirs.
    node("ip -n vrf link set net1 nomaster");
    same(&task, &namespace.path());
    told(&task, "ping -c 1 -W 20 10.89.2.1");
    node("ip -n vrf link set net1 master red");
    same(&task, &namespace.path());
    node("ip -n vrf link del red");
    same(&task, &namespace.path());
    assert_eq!(told(&task, "ls /sys/class/net"), "eth0\nlo\nnet1\n");
    task.destroy();
    let left = namespace.whole();
    assert!(!left.contains("clsact") && !left.contains("husk"), "{left}");
    for chain in &chains {
        chain.del();
    }
}

#[test]
fn a_gateway_outside_the_subnet_and_two_more_networks_are_the_guests() {
    let _node = Node::enter();
    let _uplinks = Uplinks(&["cali0", "up6", "up7", "outside"]);
    uplink("up6", "10.88.7.1/24");
    uplink("up7", "10.88.8.1/24");
    // As Calico wires a pod: single addresses, and gateways that the node answers for, which has
    // a route to everywhere.
    let calico = "ip link add cali0 address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns calico
        ip link set cali0 addrgenmode none up; ip addr add fe80::ecee:eeff:feee:eeee/64 dev cali0 nodad
        sysctl -q -w net.ipv4.conf.cali0.proxy_arp=1 net.ipv4.neigh.cali0.proxy_delay=0
        n addr add 10.77.5.2/32 dev eth0; n addr add fd77:5::2/128 dev eth0 nodad; n link set eth0 up
        n route add 169.254.1.1 dev eth0 scope link; n route add default via 169.254.1.1 dev eth0
        n neigh add fe80::ecee:eeff:feee:eeee lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
        n -6 route add default via fe80::ecee:eeff:feee:eeee dev eth0
        ip route add 10.77.5.2 dev cali0 scope link; ip -6 route add fd77:5::2 dev cali0
        ip link add outside type dummy; ip link set outside up; ip route add 169.254.1.1 dev outside
        ip addr add 192.0.2.1/32 dev outside; ip addr add fd99::1/128 dev outside nodad";
    let namespace = Namespace::new("calico", calico);
    let add = |interface, plugins| Chain::add(&namespace, interface, plugins);
    let chains = [
        add(
            "net1",
            json!([{ "type": "macvlan", "master": "up6", "ipam": ipam(&["10.88.7.0/24"]) }]),
        ),
        add(
            "net2",
            json!([{ "type": "ipvlan", "master": "up7", "ipam": ipam(&["10.88.8.0/24"]) }]),
        ),
    ];
    namespace.settle();
    let before = namespace.whole();
    let task = namespace.run();
    let guest = of_guest(&task);
    assert_eq!(guest, namespace.network());
    assert_eq!(told(&task, "ls /sys/class/net"), "eth0\nlo\nnet1\nnet2\n");
    for outside in ["192.0.2.1", "fd99::1", "10.88.7.1", "10.88.8.1"] {
        told(&task, &format!("ping -c 1 -W 20 {outside}"));
    }
    for inside in ["10.77.5.2", "fd77:5::2"] {
        node(&format!("busybox ping -c 1 -W 20 {inside}"));
    }
    for chain in &chains {
        assert_eq!(chain.verdicts(), [""]);
    }
    task.destroy();
    assert_eq!(namespace.whole(), before);
    for chain in &chains {
        chain.del();
    }
}

#[test]
fn a_link_that_leads_nowhere_is_the_guests() {
    let plugin = "/usr/lib/cni/dummy";
    if !Path::new(plugin).exists() {
        eprintln!("skipped: no {plugin} here, which CNI's plugins have since 1.2");
        return;
    }
    let _node = Node::enter();
    let _uplinks = Uplinks(&[]);
    let namespace = Namespace::new("nowhere", "");
    let add = |interface, plugin, subnets: &[&str]| {
        let plugin = json!({ "type": plugin, "ipMasq": false, "ipam": ipam(subnets) });
        Chain::add(&namespace, interface, json!([plugin]))
    };
    let chains = [
        add("eth0", "ptp", &["10.97.1.0/24"]),
        add("net1", "dummy", &["10.97.2.0/24", "fd97::/64"]),
    ];
    namespace.settle();
    let before = namespace.whole();
    let verdicts = || chains.each_ref().map(Chain::verdicts);
    assert_eq!(verdicts(), [[""], [""]]);
    let task = namespace.run();
    let guest = of_guest(&task);
    assert_eq!(guest, namespace.network());
    for its_own in ["net1 inet 10.97.2.2/24", "net1 inet6 fd97::2/64"] {
        assert!(
            guest.iter().any(|line| line.starts_with(its_own)),
            "{guest:#?}"
        );
    }
    for address in ["10.97.1.1", "10.97.2.2", "fd97::2"] {
        told(&task, &format!("ping -c 1 -W 20 {address}"));
    }
    told(&task, "! ping -c 1 -W 1 10.97.2.3");
    assert_eq!(verdicts(), [[""], [""]]);
    task.destroy();
    assert_eq!(namespace.whole(), before);
    for chain in &chains {
        chain.del();
    }
    assert_eq!(namespace.told("ip -o link | wc -l"), "1\n");
}

/// Tells the kernel parameters of a network and of its links. Left out are those that our kernel
/// is built without, those of its own making (no address by itself) and what it counts or has changed
/// in a later version.
const PARAMETERS: &str = "cd /proc/sys/net; grep -s . core/somaxconn ipv4/ip_unprivileged_port_start \
    ipv4/ip_local_port_range ipv4/tcp_keepalive_time ipv4/conf/*/* ipv6/conf/*/* ipv[46]/neigh/*/*_ms |
    grep -v 'neigh/default\\|husk\\|/mtu:\\|mc_forwarding\\|addr_gen_mode\\|rtr_pref\\|rt_info\\|_probe_\\|temp_'";

#[test]
fn what_tuning_sets_holds_in_the_guest_and_follows() {
    let _node = Node::enter();
    let _uplinks = Uplinks(&[]);
    let namespace = Namespace::new("tuned", "");
    let add = |interface, subnets: &[&str], sysctl: Value| {
        let ptp = json!({ "type": "ptp", "ipMasq": false, "ipam": ipam(subnets) });
        let tuning = json!({ "type": "tuning", "sysctl": sysctl });
        Chain::add(&namespace, interface, json!([ptp, tuning]))
    };
    // Its CHECK knows neither IFNAME nor that blanks are tabs.
    let set = json!({
        "net.core.somaxconn": "500",
        "net.ipv4.ip_unprivileged_port_start": "80",
        "net.ipv4.ip_local_port_range": "20000\t30000",
        "net.ipv4.conf.all.arp_ignore": "1",
        "net.ipv4.conf.eth0.arp_filter": "1",
        "net.ipv6.conf.eth0.accept_ra": "0",
        "net.ipv6.neigh.eth0.retrans_time_ms": "500",
    });
    let first = add("eth0", &["10.90.1.0/24", "fd90::/64"], set);
    namespace.settle();
    assert_eq!(first.verdicts(), ["", ""]);
    let task = namespace.run();
    let agreed = || {
        same(&task, &namespace.path());
        let deadline = Instant::now() + DEADLINE;
        loop {
            let guest = lines(&told(&task, PARAMETERS));
            let there = lines(&namespace.told(PARAMETERS));
            let missing = guest.iter().filter(|line| !there.contains(line));
            let missing: Vec<_> = missing.collect();
            if missing.is_empty() {
                return guest;
            }
            assert!(Instant::now() < deadline, "only in the guest: {missing:#?}");
        }
    };
    let guest = agreed();
    for set in [
        "core/somaxconn:500",
        "ipv4/conf/eth0/arp_filter:1",
        "ipv6/conf/eth0/accept_ra:0",
        "ipv6/neigh/eth0/retrans_time_ms:500",
    ] {
        assert!(guest.iter().any(|line| line == set), "{set}: {guest:#?}");
    }
    assert_eq!(first.verdicts(), ["", ""]);
    // Another link comes with its own, and with it what was set and taken back meanwhile.
    namespace.told(
        "cd /proc/sys/net; echo 4096 >core/somaxconn; echo 0 >ipv4/conf/eth0/arp_filter
         echo 1 >ipv4/conf/eth0/proxy_arp",
    );
    let second = add(
        "net1",
        &["10.90.2.0/24", "fd91::/64"],
        json!({ "net.ipv4.conf.IFNAME.arp_announce": "2", "net.ipv6.conf.IFNAME.disable_ipv6": "1" }),
    );
    let guest = agreed();
    for set in [
        "core/somaxconn:4096",
        "ipv4/conf/eth0/arp_filter:0",
        "ipv4/conf/eth0/proxy_arp:1",
        "ipv4/conf/net1/arp_announce:2",
        "ipv6/conf/net1/disable_ipv6:1",
    ] {
        assert!(guest.iter().any(|line| line == set), "{set}: {guest:#?}");
    }
    for gateway in ["10.90.1.1", "fd90::1", "10.90.2.1"] {
        told(&task, &format!("ping -c 1 -W 20 {gateway}"));
    }
    second.del();
    agreed();
    task.destroy();
    first.del();
}
