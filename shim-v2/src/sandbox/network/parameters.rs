//! Kernel parameters (`net.*`) of the pod's network namespace that somebody has set: a plugin,
//! such as CNI's `tuning`, or the host's administrator for all namespaces to come.
//!
//! Looked at are those listed here. The guest is told of one only if it is not what a kernel
//! begins with, so that what the pod's spec sets holds. A kernel tells of changes of a few, as of
//! forwarding: they are looked at with everything else.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::iter;

use super::scan::{LOOPBACK, Link};

/// Parameters of a namespace, below `/proc/sys/net`, and what a kernel begins with.
const OF_NAMESPACE: &[(&str, &str)] = &[
    ("core/somaxconn", "4096"),
    ("ipv4/icmp_echo_ignore_all", "0"),
    ("ipv4/ip_default_ttl", "64"),
    ("ipv4/ip_nonlocal_bind", "0"),
    // Before the range, which may not begin below it.
    ("ipv4/ip_unprivileged_port_start", "1024"),
    ("ipv4/ip_local_port_range", "32768\t60999"),
    ("ipv4/ping_group_range", "1\t0"),
    ("ipv4/tcp_ecn", "2"),
    ("ipv4/tcp_fastopen", "1"),
    ("ipv4/tcp_fin_timeout", "60"),
    ("ipv4/tcp_keepalive_intvl", "75"),
    ("ipv4/tcp_keepalive_probes", "9"),
    ("ipv4/tcp_keepalive_time", "7200"),
    ("ipv4/tcp_l3mdev_accept", "0"),
    ("ipv4/tcp_mtu_probing", "0"),
    ("ipv4/tcp_retries2", "15"),
    ("ipv4/tcp_slow_start_after_idle", "1"),
    ("ipv4/tcp_syn_retries", "6"),
    ("ipv4/tcp_synack_retries", "5"),
    ("ipv4/tcp_syncookies", "1"),
    ("ipv4/tcp_timestamps", "1"),
    ("ipv4/tcp_tw_reuse", "2"),
    ("ipv4/udp_l3mdev_accept", "0"),
    ("ipv6/bindv6only", "0"),
    ("ipv6/ip_nonlocal_bind", "0"),
];
/// Those of each link, and for all and later ones. The first changes others.
const IPV4: &[(&str, &str)] = &[
    (FORWARDING, "0"),
    ("accept_local", "0"),
    (ACCEPT_REDIRECTS, "1"),
    (ACCEPT_SOURCE_ROUTE, "1"),
    ("arp_accept", "0"),
    ("arp_announce", "0"),
    ("arp_filter", "0"),
    ("arp_ignore", "0"),
    ("arp_notify", "0"),
    (DISABLE_POLICY, "0"),
    (DISABLE_XFRM, "0"),
    ("drop_gratuitous_arp", "0"),
    ("drop_unicast_in_l2_multicast", "0"),
    ("ignore_routes_with_linkdown", "0"),
    ("log_martians", "0"),
    ("promote_secondaries", "0"),
    ("proxy_arp", "0"),
    ("proxy_arp_pvlan", "0"),
    ("route_localnet", "0"),
    ("rp_filter", "0"),
    ("secure_redirects", "1"),
    ("send_redirects", "1"),
    ("shared_media", "1"),
    ("src_valid_mark", "0"),
];
/// The same of version 6.
const IPV6: &[(&str, &str)] = &[
    (FORWARDING, "0"),
    ("accept_ra", "1"),
    ("accept_ra_defrtr", "1"),
    ("accept_ra_mtu", "1"),
    ("accept_ra_pinfo", "1"),
    (ACCEPT_REDIRECTS, "1"),
    (ACCEPT_SOURCE_ROUTE, "0"),
    ("autoconf", "1"),
    ("dad_transmits", "1"),
    (DISABLE_IPV6, "0"),
    (DISABLE_POLICY, "0"),
    ("drop_unsolicited_na", "0"),
    ("ignore_routes_with_linkdown", "0"),
    ("keep_addr_on_down", "0"),
    ("ndisc_notify", "0"),
    ("proxy_ndp", "0"),
    ("router_solicitations", "-1"),
    (USE_TEMPADDR, "0"),
];
/// Of the neighbours by a link.
const NEIGHBOURS: &[(&str, &str)] = &[
    ("base_reachable_time_ms", "30000"),
    ("retrans_time_ms", "1000"),
];
const FORWARDING: &str = "forwarding";
const DISABLE_IPV6: &str = "disable_ipv6";
const ACCEPT_REDIRECTS: &str = "accept_redirects";
const ACCEPT_SOURCE_ROUTE: &str = "accept_source_route";
const DISABLE_POLICY: &str = "disable_policy";
const DISABLE_XFRM: &str = "disable_xfrm";
const USE_TEMPADDR: &str = "use_tempaddr";

const V4: &str = "ipv4/conf";
const V6: &str = "ipv6/conf";
/// Names in the place of a link's: what holds for all links, and what new ones begin with.
const ALL: &str = "all";
const NEW: &str = "default";
/// A link that every namespace has.
const LO: &str = "lo";
/// Whoever writes these for all links writes them to each.
const SPREADING: [&str; 2] = [FORWARDING, DISABLE_IPV6];
/// Another name of the file of [`FORWARDING`] for all links.
const IP_FORWARD: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"];
/// Room for a value.
const VALUE: usize = 256;

/// A parameter that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The number of its link in the pod's namespace; `None` if it is not one link's.
    pub link: Option<u32>,
    /// Its file below `/proc/sys`.
    pub file: String,
    /// What is in it.
    pub value: String,
    /// What a kernel begins with.
    pub default: &'static str,
}

/// The files of those that a kernel's command line sets (`sysctl.<name>=`, the kernel's
/// admin-guide/kernel-parameters).
pub fn of_command_line(line: &str) -> HashSet<String> {
    let names = line.split_whitespace().filter_map(|word| {
        let (name, _) = word.strip_prefix("sysctl.")?.split_once('=')?;
        let file = name.replace('.', "/");
        Some(match file == IP_FORWARD[0] {
            true => IP_FORWARD[1].to_owned(),
            false => file,
        })
    });
    names.collect()
}

/// Those of the calling thread's namespace that the guest has to be told of, in the order in
/// which it is, but the files that it has `kept`: those of the namespace, of lo and of `links`.
pub fn read<'a>(links: impl Iterator<Item = &'a Link>, kept: &HashSet<String>) -> Vec<Parameter> {
    let links = links.map(|link| (link.index, link.name.as_str()));
    let links: Vec<_> = iter::once((LOOPBACK, LO)).chain(links).collect();
    told(&links, kept, value)
}

/// The same for what `value` gives for a file; `None` if there is none.
fn told(
    links: &[(u32, &str)],
    kept: &HashSet<String>,
    value: impl Fn(&str) -> Option<String>,
) -> Vec<Parameter> {
    let one = |link, file: String, default, in_any_case| {
        let value = value(&file).filter(|_| !kept.contains(&file))?;
        (in_any_case || value != default).then_some(Parameter {
            link,
            file,
            value,
            default,
        })
    };
    let of_namespace = OF_NAMESPACE.iter();
    let mut told: Vec<Parameter> = of_namespace
        .filter_map(|(name, default)| one(None, format!("net/{name}"), *default, false))
        .collect();
    for (place, parameters, for_all) in [
        (V4, IPV4, true),
        (V6, IPV6, true),
        ("ipv4/neigh", NEIGHBOURS, false),
        ("ipv6/neigh", NEIGHBOURS, false),
    ] {
        let all = [ALL, NEW].into_iter().filter(|_| for_all);
        let all = all.map(|name| (None, name));
        let links = links.iter().map(|&(index, name)| (Some(index), name));
        // What is written for all links is written to each.
        let mut overwritten = HashSet::new();
        for (link, name) in all.chain(links) {
            for (parameter, default) in parameters {
                let default = match (place, name, *parameter) {
                    (V4, ALL, ACCEPT_SOURCE_ROUTE) => "0",
                    (V4, LO, DISABLE_POLICY | DISABLE_XFRM) => "1",
                    (V6, LO, USE_TEMPADDR) => "-1",
                    _ => default,
                };
                let spreads = SPREADING.contains(parameter);
                if spreads && kept.contains(&format!("net/{place}/{ALL}/{parameter}")) {
                    continue;
                }
                let file = format!("net/{place}/{name}/{parameter}");
                let Some(set) = one(link, file, default, overwritten.contains(parameter)) else {
                    continue;
                };
                told.push(set);
                if link.is_none() {
                    overwritten.insert(parameter);
                    // A router does not follow the redirects of others.
                    if *parameter == FORWARDING {
                        overwritten.insert(&ACCEPT_REDIRECTS);
                    }
                }
            }
        }
    }
    told
}

/// What is in a file below `/proc/sys`; `None` for what this kernel does not have.
fn value(file: &str) -> Option<String> {
    let mut bytes = [0; VALUE];
    let mut file = File::open(format!("/proc/sys/{file}")).ok()?;
    let length = file.read(&mut bytes).ok()?;
    let text = str::from_utf8(bytes.get(..length)?).ok()?;
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
#[path = "parameters_test.rs"]
mod tests;
