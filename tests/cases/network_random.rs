//! Random networks: whatever a namespace holds and whatever becomes of it, the guest has the same.
//!
//! A seed is a network and its changes, of all that README's "Limits" does not except. A command
//! that the namespace's kernel refuses is no part of it: that kernel says what a network is.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use husk_tests::Node;
use husk_tests::network::{Namespace, node, same};

/// Where the other ends of the links are, and those that links are made on.
const FAR: &str = "
    n link add of-mac mtu 65535 type dummy; n link set of-mac up
    n link add of-ip mtu 65535 type dummy; n link set of-ip up
    n link add of-vlan mtu 65535 type dummy; n link set of-vlan up";

/// Goes through all of them, then fails if one did.
#[track_caller]
fn networks(seeds: Range<u64>) {
    let failed: Vec<u64> = seeds
        .filter(|seed| catch_unwind(AssertUnwindSafe(|| network(*seed))).is_err())
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn the_guest_has_any_network_and_any_change_of_it() {
    networks(0..6);
}

#[test]
#[ignore = "full"]
fn the_guest_has_any_of_many_networks() {
    networks(6..60);
}

fn network(seed: u64) {
    let _node = Node::enter();
    let mut plan = Plan::of(seed);
    let _far = Namespace::new("random-far", FAR);
    let namespace = Namespace::new("random", "");
    apply(seed, &plan.network());
    namespace.settle();
    let task = namespace.run();
    same(&task, &namespace.path());
    for _ in 0..4 {
        apply(seed, &plan.changes());
        same(&task, &namespace.path());
    }
    let network = namespace.network();
    task.destroy();
    assert_eq!(namespace.network(), network);
    let left = namespace.whole();
    assert!(!left.contains("clsact") && !left.contains("husk"), "{left}");
}

/// Has the commands carried out, in the order of a plan.
#[track_caller]
fn apply(seed: u64, commands: &str) {
    eprintln!("--- seed {seed}:\n{commands}");
    node(&format!(
        "n() {{ ip -n random \"$@\" || echo \"refused: $*\"; }}; f() {{ ip -n random-far \"$@\" || echo \"refused: $*\"; }}
        s() {{ ip netns exec random sysctl -q -w \"$1\" || echo \"refused: $*\"; }}
        {commands}"
    ));
}

/// Random commands: `n` is `ip` in the namespace, `f` in the one of the other ends, `s` sets a
/// kernel parameter.
struct Plan {
    state: u64,
    /// The names of those that are there.
    links: Vec<String>,
    /// The networks of the links, by number; each has one of both versions.
    networks: Vec<(String, u64)>,
    /// How many things were made, for names and numbers of their own.
    made: u64,
    /// What was added, as `ip` has it before and behind the verb.
    added: Vec<(&'static str, String)>,
}

impl Plan {
    fn of(seed: u64) -> Self {
        Self {
            state: seed,
            links: Vec::new(),
            networks: Vec::new(),
            made: 0,
            added: Vec::new(),
        }
    }

    fn network(&mut self) -> String {
        let links = 1 + self.below(4);
        let mut script = self.times(links, Self::new_link);
        if self.one_in(3) {
            script += &self.new_vrf();
        }
        let (things, parameters) = (self.below(12), self.below(5));
        script + &self.times(things, Self::addition) + &self.times(parameters, Self::parameter)
    }

    fn changes(&mut self) -> String {
        let changes = 1 + self.below(6);
        self.times(changes, |plan| match plan.below(12) {
            0 if plan.links.len() < 8 => plan.new_link(),
            1 if plan.links.len() > 1 => plan.lost_link(),
            2 | 3 => plan.changed_link(),
            4..=6 => plan.removal(),
            7 => plan.parameter(),
            _ => plan.addition(),
        })
    }

    fn addition(&mut self) -> String {
        match self.below(8) {
            0 | 1 => self.address(),
            2..=4 => self.route(),
            5 | 6 => self.rule(),
            _ => self.neighbour(),
        }
    }

    fn removal(&mut self) -> String {
        if self.added.is_empty() {
            return String::new();
        }
        let at = self.below(self.added.len() as u64) as usize;
        let (what, thing) = self.added.swap_remove(at);
        format!("n {what} del {thing}\n")
    }

    /// With its networks, and mostly up.
    fn new_link(&mut self) -> String {
        let number = self.made();
        let name = self.pick("eth|net|a.b-c_d|Z+|veth1234567|0x|e.100.|all") + &number.to_string();
        let lower = (!self.links.is_empty()).then(|| self.link());
        let made = match (self.below(9), lower) {
            (5..=7, Some(lower)) => {
                let vlan = format!("vlan id {number}");
                let kinds = format!("{vlan}|{vlan}|macvlan mode private|ipvlan mode l2");
                let kind = self.pick(&kinds);
                format!("n link add {name} link {lower} type {kind}")
            }
            (0, _) => {
                format!("f link add {name} netns random link of-mac type macvlan mode bridge")
            }
            (1, _) => format!("f link add {name} netns random link of-ip type ipvlan mode l2"),
            (2, _) => format!("f link add {name} netns random link of-vlan type vlan id {number}"),
            (3, _) => format!("n link add {name} type dummy"),
            _ => format!(
                "f link add far{number} type veth peer name {name} netns random; f link set far{number} up"
            ),
        };
        let mtu = self.pick("1500|1450|1280|9000|65535");
        let mut script = format!("{made}\nn link set {name} mtu {mtu}\n");
        let properties = self.below(3);
        script += &self.times(properties, |plan| plan.property(&name));
        if !self.one_in(8) {
            script += &format!("n link set {name} up\n");
        }
        self.links.push(name.clone());
        for _ in 0..1 + self.below(2) {
            let network = self.made();
            self.networks.push((name.clone(), network));
            let addresses = self.below(4);
            script += &self.times(addresses, |plan| plan.address_in(&name, network));
        }
        script
    }

    fn new_vrf(&mut self) -> String {
        let number = self.made();
        let (vrf, table, port) = (format!("red{number}"), 300 + number, self.link());
        format!(
            "n link add {vrf} type vrf table {table}; n link set {vrf} up; n link set {port} master {vrf}\n"
        )
    }

    /// Not the first one, without which there may be none: what is on a lost one is lost, too.
    fn lost_link(&mut self) -> String {
        let at = 1 + self.below(self.links.len() as u64 - 1) as usize;
        let name = self.links.remove(at);
        self.networks.retain(|(link, _)| *link != name);
        format!("n link del {name}\n")
    }

    fn changed_link(&mut self) -> String {
        let name = self.link();
        match self.below(5) {
            0 => format!("n link set {name} down; n link set {name} up\n"),
            1 => format!("n link set {name} down\n"),
            2 => format!("n link set {name} up\n"),
            _ => self.property(&name),
        }
    }

    fn property(&mut self, name: &str) -> String {
        let values = [
            "mtu 1500|mtu 1400|mtu 1280|mtu 1200|mtu 9000",
            "txqueuelen 1|txqueuelen 0|txqueuelen 77",
            "alias x|alias 'two words'|alias ''|alias a/b:c",
            "promisc on|promisc off|allmulticast on|allmulticast off",
            "arp on|arp off|multicast on|multicast off",
            "address MAC",
        ];
        let at = self.below(values.len() as u64) as usize;
        let property = self.pick(values[at]).replace("MAC", &self.mac());
        format!("n link set {name} {property}\n")
    }

    fn address(&mut self) -> String {
        let (link, network) = self.place();
        match self.one_in(6) {
            true => self.address_in("lo", network),
            false => self.address_in(&link, network),
        }
    }

    fn address_in(&mut self, link: &str, network: u64) -> String {
        let v4 = self.is_v4();
        let host = 1 + self.below(9);
        let own = ip(v4, network, host);
        let peer = self.pick(&format!("peer {}|||", ip(v4, network, 20 + host)));
        let (length, of_version) = if v4 {
            let length = self.pick("24|24|16|32|31|30");
            let broadcast = self.maybe("brd +|brd 10.9.9.255");
            let scope = self.maybe("scope link|scope host|scope 77");
            let label = self.maybe(&format!("label {link}:{host}"));
            (length, format!("{broadcast} {scope} {label}"))
        } else {
            let length = self.pick("64|64|128|126|48");
            // One of a link that is down would be tried out for ever.
            (length, format!("nodad {}", self.maybe("home|mngtmpaddr")))
        };
        let more = self.maybe("noprefixroute|metric 50|proto 0x5");
        let life = self.maybe("valid_lft forever preferred_lft 0");
        self.add(
            "addr",
            &format!("{own} {peer}/{length} dev {link} {of_version} {more} {life}")
                .replace(" /", "/"),
        )
    }

    fn route(&mut self) -> String {
        let v4 = self.is_v4();
        let to = self.destination(v4);
        let (link, network) = self.place();
        let gateway = ip(v4, network, 200 + self.below(9));
        let nobody = if v4 { "192.0.2.1" } else { "fd77::1" };
        let (mut kind, mut way, mut hops) = (String::new(), String::new(), String::new());
        match self.below(9) {
            0 => kind = self.pick("blackhole|unreachable|prohibit|throw"),
            1 | 2 => way = format!("dev {link} {}", self.maybe("scope link|scope host")),
            3 => way = format!("via {nobody} dev {link} onlink"),
            4 if v4 => way = format!("via inet6 fe80::{} dev {link}", self.below(9)),
            5 | 6 => {
                let several = 1 + self.below(3);
                hops = self.times(several, |plan| plan.hop(v4));
            }
            _ => way = format!("via {gateway} dev {link}"),
        }
        let own = self.maybe(if v4 {
            "tos 0x10"
        } else {
            "from fd88::/64|pref high|pref low"
        });
        let metric = self.maybe("metric 77|metric 5|metric 4096");
        let by = self.maybe("proto static|proto bird|proto 77");
        let table = self.maybe("table 100|table 1000|table 4000000000|table default");
        let source = format!("src {}||", ip(v4, network, 1 + self.below(9)));
        let source = self.pick(&source);
        let more = self.maybe(
            "mtu 1300|mtu lock 1200|advmss 1100|initcwnd 20 initrwnd 30|hoplimit 9|congctl reno|\
             rtt 100ms rto_min 50ms|features ecn|quickack 1|reordering 9 ssthresh 7 window 5000",
        );
        self.add(
            "route",
            &format!("{kind} {to} {way} {own} {metric} {by} {table} {source} {more} {hops}"),
        )
    }

    fn hop(&mut self, v4: bool) -> String {
        let (link, network) = self.place();
        let gateway = ip(v4, network, 200 + self.below(9));
        let (weight, onlink) = (1 + self.below(9), self.maybe("onlink"));
        format!("nexthop via {gateway} dev {link} weight {weight} {onlink} ")
    }

    fn rule(&mut self) -> String {
        let v4 = self.is_v4();
        let not = self.maybe("not");
        let from = self.destination(v4);
        let to = self.destination(v4);
        let to = self.pick(&format!("to {to}||"));
        let link = self.link();
        let by = self.maybe(&format!(
            "iif {link}|oif {link}|iif lo|iif nobody|oif nobody"
        ));
        let mark = self.maybe("fwmark 7|fwmark 0x10/0xff|fwmark 0|fwmark 0/0xf0|tos 0x10");
        let whose = self.maybe(
            "uidrange 1000-1999|uidrange 0-0|ipproto tcp|ipproto udp dport 53|tun_id 5|\
             ipproto tcp sport 1-1000 dport 80",
        );
        let author = self.maybe("protocol static|protocol 99");
        let priority = 100 + self.below(9);
        let what = self.pick(
            "lookup 100|lookup 1000|lookup 4000000000|lookup main suppress_prefixlength 0|\
             blackhole|prohibit|unreachable|goto 105|goto 30000|nop",
        );
        self.add(
            if v4 { "rule" } else { "-6 rule" },
            &format!("{not} from {from} {to} {by} {mark} {whose} {author} prio {priority} {what}"),
        )
    }

    fn neighbour(&mut self) -> String {
        let (link, network) = self.place();
        let v4 = self.is_v4();
        let ip = ip(v4, network, 200 + self.below(9));
        let how = self
            .pick("permanent|permanent router|permanent extern_learn|permanent protocol 77|noarp");
        let mac = self.mac();
        self.add("neigh", &format!("{ip} lladdr {mac} dev {link} nud {how}"))
    }

    fn parameter(&mut self) -> String {
        let link = self.link();
        let of = self.pick(&format!("{link}|all|default"));
        let name = self.pick(
            "forwarding|accept_redirects|disable_policy|accept_source_route|ignore_routes_with_linkdown",
        );
        let version = if self.is_v4() { "ipv4" } else { "ipv6" };
        let value = self.below(2);
        format!("s net/{version}/conf/{of}/{name}={value}\n")
    }

    fn destination(&mut self, v4: bool) -> String {
        self.pick(match v4 {
            true => {
                "0.0.0.0/0|10.201.0.0/16|10.201.0.0/17|10.202.1.0/24|10.203.1.1/32|10.204.0.0/16"
            }
            false => "::/0|fd99:1::/64|fd99:1::/48|fd99:2::/65|fd99:3::1/128|fd99:4::/64",
        })
    }

    /// Has it added, and perhaps removed one day.
    fn add(&mut self, what: &'static str, thing: &str) -> String {
        let thing = thing.split_whitespace().collect::<Vec<_>>().join(" ");
        let name = thing.split(" valid_lft").next().unwrap_or_default();
        self.added.push((what, name.to_owned()));
        format!("n {what} add {thing}\n")
    }

    fn made(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    fn mac(&mut self) -> String {
        let first = self.pick("02|00|fa|9e");
        let (random, own) = (self.below(256), self.made());
        format!("{first}:{random:02x}:00:5e:00:{own:02x}")
    }

    fn link(&mut self) -> String {
        let at = self.below(self.links.len() as u64) as usize;
        self.links[at].clone()
    }

    /// A link and a network of it.
    fn place(&mut self) -> (String, u64) {
        let at = self.below(self.networks.len() as u64) as usize;
        self.networks[at].clone()
    }

    fn is_v4(&mut self) -> bool {
        !self.one_in(3)
    }

    /// One of the words between the bars.
    fn pick(&mut self, of: &str) -> String {
        let words: Vec<&str> = of.split('|').collect();
        words[self.below(words.len() as u64) as usize].to_owned()
    }

    /// One of them, or mostly none.
    fn maybe(&mut self, of: &str) -> String {
        match self.one_in(3) {
            true => self.pick(of),
            false => String::new(),
        }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn times(&mut self, times: u64, mut script: impl FnMut(&mut Self) -> String) -> String {
        (0..times).map(|_| script(self)).collect()
    }

    /// SplitMix64.
    fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// That of a host in a network of a link.
fn ip(v4: bool, network: u64, host: u64) -> String {
    match v4 {
        true => format!("10.{network}.0.{host}"),
        false => format!("fd{network:02x}::{host}"),
    }
}
