//! What a network is in words that a guest and the pod's namespace have in common.

use std::process::Command;

#[cfg(doc)]
use crate::network::PROGRAMS;
use crate::network::told;
use crate::{Task, process};

/// Tells all of a network. One program says it on both sides, the node's own: `IN` is what leads
/// to it.
const DUMP: &str = "
    printf '%s\\n' link addr 'route show table all' 'neigh show nud permanent' 'neigh show proxy' rule |
        IN /usr/sbin/ip -d -o -batch - && IN /usr/sbin/ip -d -o -6 rule";

/// What tells the network of a container that has [`PROGRAMS`], for [`common`].
pub fn script() -> String {
    DUMP.replace("IN", "chroot /node")
}

/// The network of a container that has [`PROGRAMS`].
///
/// # Panics
/// If it cannot be told.
#[track_caller]
pub fn of_guest(task: &Task) -> Vec<String> {
    common(&told(task, &script()))
}

/// The network in the namespace of a path.
///
/// # Panics
/// If it cannot be told.
#[track_caller]
pub fn of_namespace(path: &str) -> Vec<String> {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={path}"));
    nsenter.args(["sh", "-c", &DUMP.replace("IN", "")]);
    common(&process::run(nsenter).succeeded().text())
}

/// What two kernels have in common of a dump: rules and the addresses of version 4 of a link in
/// their order, all else in an order of its own. A line that is told twice, as of a route that
/// somebody has added once more, is one. Of what the host has besides, its taps are left out.
pub fn common(dump: &str) -> Vec<String> {
    let own = |line: &&str| !line.contains("husk") && !line.trim().is_empty();
    let mut lines: Vec<String> = dump.lines().filter(own).map(line).collect();
    lines.sort_by_cached_key(|line| {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        match rest.split(' ').next() {
            Some("inet") => format!("{first} inet"),
            _ if first.ends_with(':') => "rules".into(),
            _ => line.clone(),
        }
    });
    lines.dedup();
    lines
}

/// A line of a dump without what the host alone knows: the numbers of links, what kinds they are
/// of, their queues and their carriers; and what only says how an address came to be.
fn line(line: &str) -> String {
    const NOT_FOLLOWED: [&str; 5] = ["noprefixroute", "nodad", "linkdown", "dead", "\\"];
    let words: Vec<&str> = line.split_whitespace().collect();
    let numbered =
        words[0].ends_with(':') && !["from", "not"].contains(words.get(1).unwrap_or(&"from"));
    match words.get(2) {
        Some(flags) if numbered && flags.starts_with('<') => link(line),
        _ => {
            let words = words[usize::from(numbered)..].iter();
            let words = words.filter(|word| !NOT_FOLLOWED.contains(word));
            words
                .map(|word| word.trim_end_matches('\\'))
                .collect::<Vec<_>>()
                .join(" ")
        }
    }
}

/// A link: `eth0 mtu 1500 ether 02:00:00:00:00:07 brd ... mode DEFAULT ... <BROADCAST,UP>`.
fn link(line: &str) -> String {
    let mut parts = line.split('\\');
    let mut words = parts
        .next()
        .into_iter()
        .flat_map(str::split_whitespace)
        .skip(1);
    let name = words.next().unwrap_or_default();
    let name = name.split(['@', ':']).next().unwrap_or_default();
    let flags = words.next().unwrap_or_default().trim_matches(['<', '>']);
    let carrier = |flag: &&str| !["LOWER_UP", "NO-CARRIER", "M-DOWN"].contains(flag);
    let flags: Vec<&str> = flags.split(',').filter(carrier).collect();
    let mut said = format!("{name} mtu");
    let mut rest = String::new();
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        match key {
            "mtu" => said += &format!(" {value}"),
            "qdisc" | "state" => {}
            _ => rest += &format!(" {key} {value}"),
        }
    }
    for part in parts.map(str::trim) {
        if let Some(kind) = part.strip_prefix("link/") {
            let address: Vec<&str> = kind.split_whitespace().take(4).collect();
            said += &format!(" {}", address.join(" "));
        } else if part.starts_with("alias") {
            rest += &format!(" {part}");
        } else if part.starts_with("vrf") {
            let table: Vec<&str> = part.split_whitespace().take(3).collect();
            rest += &format!(" {}", table.join(" "));
        }
    }
    format!("{said}{rest} <{}>", flags.join(","))
}

#[cfg(test)]
#[path = "dump_test.rs"]
mod tests;
