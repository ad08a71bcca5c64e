//! Where the addresses come from: fixed ones, and those of a DHCP server. Whoever gave them, the
//! guest has them, and the plugin finds them where it put them.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::dump::of_guest;
use husk_tests::network::{Chain, Namespace, node, told};
use husk_tests::process::DEADLINE;
use husk_tests::{Node, Running};
use serde_json::{Value, json};

/// A bridge of the node with the first addresses of 10.`net`.0.0/24 and fd`net`::/64, and a link
/// that leads to it. Gone when dropped, and what the plugins keep with them.
struct Bridge(&'static str);

impl Bridge {
    #[track_caller]
    fn new(name: &'static str, net: u8) -> Self {
        let bridge = Self(name);
        node(&format!(
            "ip link add {name} type bridge; ip link set {name} up; ip addr add 10.{net}.0.1/24 dev {name}
             ip addr add fd{net}::1/64 dev {name} nodad; mkdir -p /run/plugins
             ip link add {name}-up type veth peer name {name}-port; ip link set {name}-up up
             ip link set {name}-port master {name} up"
        ));
        bridge
    }

    /// A plugin that gives the pod a port of it.
    fn port(&self, ipam: &Value) -> Value {
        json!([{ "type": "bridge", "bridge": self.0, "ipMasq": false, "ipam": ipam }])
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        node(&format!(
            "for link in {0}-up {0}; do ip link del $link || :; done; rm -rf /run/plugins /run/cni",
            self.0
        ));
    }
}

/// Expects lines of a dump that begin so.
#[track_caller]
fn has(guest: &[String], beginnings: &[&str]) {
    for given in beginnings {
        let is_it = |line: &String| line.starts_with(given);
        assert!(guest.iter().any(is_it), "{given}: {guest:#?}");
    }
}

#[test]
fn fixed_addresses_and_routes_and_a_loopback_by_plugin_are_the_guests() {
    let _node = Node::enter();
    let bridge = Bridge::new("fixed0", 91);
    let namespace = Namespace::new("fixed", "n link set lo down");
    let fixed = json!({
        "type": "static",
        "addresses": [
            { "address": "10.91.0.2/24", "gateway": "10.91.0.1" },
            { "address": "10.91.0.130/25" },
            { "address": "fd91::2/64", "gateway": "fd91::1" },
            { "address": "fd91:1::2/128" },
        ],
        "routes": [
            { "dst": "0.0.0.0/0" },
            { "dst": "10.99.0.0/16", "gw": "10.91.0.7" },
            { "dst": "::/0", "gw": "fd91::1" },
            { "dst": "fd99::/64", "gw": "fd91::7" },
        ],
    });
    let chains = [
        Chain::add(&namespace, "lo", json!([{ "type": "loopback" }])),
        Chain::add(&namespace, "eth0", bridge.port(&fixed)),
    ];
    namespace.settle();
    let before = namespace.whole();
    let verdicts = || chains.each_ref().map(Chain::verdicts);
    let nothing_to_say = [[""], [""]];
    assert_eq!(verdicts(), nothing_to_say);
    let task = namespace.run();
    let guest = of_guest(&task);
    assert_eq!(guest, namespace.network());
    has(
        &guest,
        &[
            "eth0 inet 10.91.0.130/25",
            "eth0 inet6 fd91:1::2/128",
            "unicast default via 10.91.0.1 dev eth0",
            "unicast 10.99.0.0/16 via 10.91.0.7 dev eth0",
            "unicast fd99::/64 via fd91::7 dev eth0",
        ],
    );
    for address in ["10.91.0.1", "fd91::1", "127.0.0.1", "::1"] {
        told(&task, &format!("ping -c 1 -W 20 {address}"));
    }
    for address in ["10.91.0.2", "10.91.0.130", "fd91::2"] {
        node(&format!("busybox ping -c 1 -W 20 {address}"));
    }
    assert_eq!(verdicts(), nothing_to_say);
    task.destroy();
    assert_eq!(namespace.whole(), before);
    assert_eq!(verdicts(), nothing_to_say);
    for chain in &chains {
        chain.del();
    }
    // The loopback is as it was found, too.
    let left = namespace.told("ip -o link");
    assert!(!left.contains("UP") && left.lines().count() == 1, "{left}");
}

/// A DHCP server of the node on a bridge, and the daemon of CNI that asks for leases and renews
/// them from within the pods' namespaces.
struct Dhcp {
    _server: Running,
    _daemon: Running,
}

/// What the daemon says.
const SAID: &str = "/run/plugins/daemon.log";
/// Where the plugin asks it.
const SOCKET: &str = "/run/plugins/dhcp.sock";

impl Dhcp {
    /// Leases are for so many seconds: half of it, and they are renewed.
    #[track_caller]
    fn start(bridge: &Bridge, seconds: u32) -> Self {
        let on = bridge.0;
        let options = format!(
            "interface {on}\nstart 10.93.0.10\nend 10.93.0.20\nmax_leases 11\nmin_lease 10\n\
             lease_file /run/plugins/leases\npidfile /run/plugins/server.pid\n\
             opt subnet 255.255.255.0\nopt lease {seconds}\n\
             opt staticroutes 10.98.0.0/16 10.93.0.7, 0.0.0.0/0 10.93.0.1\n"
        );
        fs::write("/run/plugins/server", options).expect("a file of the node");
        let start = |program: &str, log: &str| {
            let mut sh = Command::new("sh");
            sh.args(["-c", &format!("exec {program} >{log} 2>&1")]);
            Running::start(sh)
        };
        let serve = "busybox udhcpd -f /run/plugins/server";
        let ask = format!("/usr/lib/cni/dhcp daemon -socketpath {SOCKET}");
        let dhcp = Self {
            _server: start(serve, "/run/plugins/server.log"),
            _daemon: start(&ask, SAID),
        };
        node(&format!("until [ -S {SOCKET} ]; do sleep 0.1; done"));
        dhcp
    }

    /// Waits until the daemon has renewed a lease from now on.
    #[track_caller]
    fn renews(&self) {
        let said = || fs::read_to_string(SAID).expect("a log");
        let count = |said: &str| said.matches("lease renewed").count();
        let before = count(&said());
        let deadline = Instant::now() + DEADLINE;
        while count(&said()) == before {
            assert!(Instant::now() < deadline, "{}", said());
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Addresses by lease.
fn leased() -> Value {
    json!({ "type": "dhcp", "daemonSocketPath": SOCKET })
}

#[test]
fn the_address_and_routes_of_a_lease_are_the_guests() {
    let _node = Node::enter();
    let bridge = Bridge::new("lease0", 93);
    let _dhcp = Dhcp::start(&bridge, 3600);
    let namespace = Namespace::new("leased", "");
    let on_macvlan = json!([{ "type": "macvlan", "master": "lease0-up", "ipam": leased() }]);
    let chains = [
        Chain::add(&namespace, "eth0", bridge.port(&leased())),
        Chain::add(&namespace, "net1", on_macvlan),
    ];
    namespace.settle();
    let before = namespace.whole();
    let task = namespace.run();
    let guest = of_guest(&task);
    assert_eq!(guest, namespace.network());
    has(
        &guest,
        &[
            "eth0 inet 10.93.0.",
            "net1 inet 10.93.0.",
            "unicast default via 10.93.0.1 dev eth0",
            "unicast 10.98.0.0/16 via 10.93.0.7 dev eth0",
        ],
    );
    told(&task, "ping -c 1 -W 20 10.93.0.1");
    // One that the guest asks for itself is its own.
    told(&task, "udhcpc -i eth0 -nqf -t 30 -s /bin/true");
    task.destroy();
    assert_eq!(namespace.whole(), before);
    for chain in &chains {
        chain.del();
    }
    let said = fs::read_to_string(SAID).expect("a log");
    assert_eq!(said.matches("releasing lease").count(), 2, "{said}");
    assert_eq!(namespace.told("ip -o link | wc -l"), "1\n");
}

#[test]
fn a_lease_is_renewed_and_checked_while_the_pod_runs() {
    let _node = Node::enter();
    let bridge = Bridge::new("lease0", 93);
    let dhcp = Dhcp::start(&bridge, 30);
    let namespace = Namespace::new("leased", "");
    let chain = Chain::add(&namespace, "eth0", bridge.port(&leased()));
    namespace.settle();
    assert_eq!(chain.verdicts(), [""]);
    dhcp.renews();
    let before = namespace.whole();
    let task = namespace.run();
    dhcp.renews();
    assert_eq!(chain.verdicts(), [""]);
    assert_eq!(of_guest(&task), namespace.network());
    told(&task, "ping -c 1 -W 20 10.93.0.1");
    task.destroy();
    assert_eq!(namespace.whole(), before);
    chain.del();
}

/// Advertises a network to all who listen at a link: RFC 4861, 4.2 and 4.6.2; 17 and 18 are
/// IPV6_MULTICAST_IF and IPV6_MULTICAST_HOPS (ipv6(7)).
const ADVERTISE: &str = r#"
    my ($link, $network) = @ARGV;
    socket(S, AF_INET6, SOCK_RAW, 58) or die "socket: $!";
    open my $index, "<", "/sys/class/net/$link/ifindex" or die "$link: $!";
    setsockopt(S, 41, 17, pack("i", <$index>)) or die "link: $!";
    setsockopt(S, 41, 18, pack("i", 255)) or die "hops: $!";
    my $router = pack("CCnCCnNN", 134, 0, 0, 64, 0, 1800, 0, 0);
    my $prefix = pack("CCCCNNN", 3, 4, 64, 0xc0, 600, 600, 0) . inet_pton(AF_INET6, $network);
    send(S, $router . $prefix, 0, pack_sockaddr_in6(0, inet_pton(AF_INET6, "ff02::1"))) or die "send: $!";"#;

#[test]
fn a_network_that_a_router_advertises_while_the_pod_runs_is_the_guests() {
    let _node = Node::enter();
    let add = "ip link add advert-far type veth peer name eth0 netns advert
        ip link set advert-far addrgenmode none up; ip addr add fe80::1/64 dev advert-far nodad
        n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    let namespace = Namespace::new("advert", add);
    let advertise = |network: &str| {
        let mut perl = Command::new("perl");
        perl.args(["-MSocket=:all", "-e", ADVERTISE, "advert-far", network]);
        husk_tests::process::run(perl).succeeded();
        let prefix = network.trim_end_matches(':');
        namespace.told(&format!(
            "until ip -6 addr | grep -q {prefix}; do sleep 0.1; done"
        ));
        namespace.settle();
    };
    advertise("fd71::");
    let task = namespace.run();
    for network in ["fd72::", "fd71::", "fd73::"] {
        advertise(network);
        told(
            &task,
            &format!("until ip -6 addr | grep -q {network}; do sleep 0.2; done"),
        );
    }
    // Lifetimes are told by what is left of them (a route's is the namespace's to watch), all else
    // is the same.
    let but_for_time = |dump: Vec<String>| {
        let words = dump.into_iter().map(|line| {
            let words = line
                .split(' ')
                .filter(|word| !word.ends_with("sec") && *word != "expires");
            words.collect::<Vec<_>>().join(" ")
        });
        words.collect::<Vec<_>>()
    };
    let deadline = Instant::now() + DEADLINE;
    let guest = loop {
        let (guest, host) = (of_guest(&task), namespace.network());
        let (guest, host) = (but_for_time(guest), but_for_time(host));
        if guest == host {
            break guest;
        }
        assert!(Instant::now() < deadline, "{guest:#?}\nis not\n{host:#?}");
    };
    has(&guest, &["unicast default via fe80::1 "]);
    task.destroy();
}
