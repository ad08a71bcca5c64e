use std::collections::HashMap;

use super::super::tests::{Namespace, within};
use super::*;

/// What a guest is told of a namespace with eth0 and eth1 where these files are set.
fn told_of(set: &[(&str, &str)]) -> Vec<String> {
    told_beside("", set)
}

/// The same with a command line that sets some itself.
fn told_beside(line: &str, set: &[(&str, &str)]) -> Vec<String> {
    let kept = of_command_line(line);
    let links = [(LOOPBACK, LO), (7, "eth0"), (9, "eth1")];
    let everything = told(&links, &HashSet::new(), |_| Some("?".to_owned()));
    let defaults: HashMap<_, _> = everything
        .into_iter()
        .map(|parameter| (parameter.file, parameter.default))
        .collect();
    let told = told(&links, &kept, |file| {
        let set = set.iter().find(|(name, _)| file == format!("net/{name}"));
        let value = set.map(|(_, value)| *value);
        Some(value.unwrap_or(defaults[file]).to_owned())
    });
    let words = |parameter: &Parameter| {
        let of = parameter.link.map(|link| format!(" of {link}"));
        let file = parameter.file.trim_start_matches("net/");
        format!("{file}={}{}", parameter.value, of.unwrap_or_default())
    };
    told.iter().map(words).collect()
}

#[test]
fn only_what_somebody_set_is_told() {
    assert!(told_of(&[]).is_empty());
    let set = [
        ("ipv6/conf/eth1/accept_ra", "0"),
        ("core/somaxconn", "500"),
        ("ipv4/neigh/eth0/retrans_time_ms", "5"),
    ];
    let expected = [
        "core/somaxconn=500",
        "ipv6/conf/eth1/accept_ra=0 of 9",
        "ipv4/neigh/eth0/retrans_time_ms=5 of 7",
    ];
    assert_eq!(told_of(&set), expected);
}

#[test]
fn a_link_keeps_its_own_where_another_is_set_for_all() {
    let set = [("ipv6/conf/all/disable_ipv6", "1")];
    let expected = [
        "ipv6/conf/all/disable_ipv6=1",
        "ipv6/conf/default/disable_ipv6=0",
        "ipv6/conf/lo/disable_ipv6=0 of 1",
        "ipv6/conf/eth0/disable_ipv6=0 of 7",
        "ipv6/conf/eth1/disable_ipv6=0 of 9",
    ];
    assert_eq!(told_of(&set), expected);
    let forwarding = told_of(&[("ipv4/conf/all/forwarding", "1")]);
    assert_eq!(forwarding[0], "ipv4/conf/all/forwarding=1");
    assert_eq!(forwarding[1], "ipv4/conf/all/accept_redirects=1");
}

#[test]
fn of_lo_only_what_somebody_set_is_told() {
    let set = [
        ("ipv4/conf/lo/disable_policy", "0"),
        ("ipv4/conf/lo/rp_filter", "2"),
    ];
    let expected = [
        "ipv4/conf/lo/disable_policy=0 of 1",
        "ipv4/conf/lo/rp_filter=2 of 1",
    ];
    assert_eq!(told_of(&set), expected);
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    let read = within(&namespace.path, |_| {
        Ok(read(iter::empty(), &HashSet::new()))
    });
    // Most others of version 4 begin with what this machine has.
    let own = |name: &str| name.contains("/lo/disable_") || name.starts_with("net/ipv6/conf/lo/");
    let own: Vec<_> = read
        .unwrap()
        .into_iter()
        .filter(|set| own(&set.file))
        .collect();
    assert_eq!(own, []);
}

#[test]
fn what_a_kernel_does_not_have_is_left_out() {
    let none = HashSet::new();
    assert!(told(&[(7, "eth0")], &none, |_| None).is_empty());
    assert_eq!(value("net/core/never_there"), None);
    assert!(value("net/core/somaxconn").unwrap().parse::<u32>().is_ok());
}

#[test]
fn the_command_line_keeps_what_it_sets() {
    let line =
        "quiet sysctl.net.core.somaxconn=\"5\" sysctl.kernel.sem=\"1 2\" sysctl.net.x a=sysctl.b";
    let files = ["net/core/somaxconn", "kernel/sem"].map(str::to_owned);
    assert_eq!(of_command_line(line), HashSet::from(files));
}

#[test]
fn what_the_pod_says_for_all_links_is_not_undone_by_one_of_them() {
    let inherited = [
        ("ipv4/conf/all/forwarding", "1"),
        ("ipv4/conf/default/forwarding", "1"),
        ("ipv4/conf/eth0/forwarding", "1"),
        ("ipv4/conf/eth0/proxy_arp", "1"),
    ];
    let told = told_beside("quiet sysctl.net.ipv4.ip_forward=0", &inherited);
    assert_eq!(told, ["ipv4/conf/eth0/proxy_arp=1 of 7"]);
    let told = told_beside("sysctl.net.ipv4.conf.eth0.proxy_arp=0", &inherited[3..]);
    assert!(told.is_empty());
}
