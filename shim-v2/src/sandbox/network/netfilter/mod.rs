//! The packet filters that a CNI plugin, or whoever else, put into the pod's network namespace.
//! There they do not see what the guest sends and receives, so the guest has them, too.
//!
//! Those are the tables of nftables, also where iptables made them. They are read ([`message`])
//! and said again to the guest's kernel ([`replay`], [`expressions`]). The older kind of iptables
//! has an interface of its own, by which a table is one block of the kernel's inner structures:
//! its rules are left where they are, and who put them there is warned.

mod expressions;
mod message;
pub mod replay;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::utsname::uname;
use thiserror::Error;

use self::message::{
    GETCHAIN, GETOBJ, GETRULE, GETSET, GETSETELEM, GETTABLE, Message, NAME, TABLE, only,
};
use super::NetworkError;
use super::netlink::{ATTEMPTS, Netlink, NetlinkError};

/// How much there may be: as much as goes into one call of the agent.
const MAX_MESSAGES: usize = 10_000;
const MAX_BYTES: usize = 2 << 20;

/// More than [`MAX_MESSAGES`] or [`MAX_BYTES`].
#[derive(Debug, Error)]
#[error(
    "the pod's network namespace has more packet filters than a virtual machine is given ({MAX_MESSAGES} parts or {} MiB of them): take some away, or set `netfilter` to \"ignore\"",
    MAX_BYTES >> 20
)]
pub struct TooMany;

/// All filters of a namespace.
#[derive(Debug, Default)]
pub struct Filters {
    /// The tables of nftables, then all chains, and so on: each is told before what needs it.
    pub tables: Vec<Message>,
    /// The tables that the older kind of iptables has made.
    pub legacy: Vec<String>,
}

impl Filters {
    /// What the guest does not have, in words.
    pub fn left_out(&self) -> Option<String> {
        let names = self.legacy.join(", ");
        (!names.is_empty()).then(|| format!("rules of iptables-legacy ({names}) do not see the guest's packets: have them made by iptables-nft"))
    }
}

/// Reads those of the calling thread's namespace.
///
/// # Errors
/// See [`NetworkError`].
pub fn read() -> Result<Filters, NetworkError> {
    let what = "packet filters";
    let tables = match nftables_is_there() {
        true => tables().map_err(|source| NetworkError::List { what, source })?,
        false => Vec::new(),
    };
    bounded(&tables)?;
    let legacy = legacy();
    Ok(Filters { tables, legacy })
}

fn bounded(tables: &[Message]) -> Result<(), TooMany> {
    let bytes: usize = tables.iter().map(|part| part.attributes.len()).sum();
    match tables.len() > MAX_MESSAGES || bytes > MAX_BYTES {
        true => Err(TooMany),
        false => Ok(()),
    }
}

/// Whether the kernel has nftables now. To ask it would load the module where none is in use.
pub fn nftables_is_there() -> bool {
    let module = Path::new("/sys/module/nf_tables");
    // What is built in is not told of anywhere else. Without this list it is better to ask.
    static BUILT_IN: LazyLock<bool> = LazyLock::new(|| {
        let release = uname().map(|name| name.release().to_owned());
        let list = Path::new("/lib/modules").join(release.unwrap_or_default());
        let list = fs::read_to_string(list.join("modules.builtin"));
        list.map_or(true, |list| list.contains("/nf_tables.ko"))
    });
    module.exists() || *BUILT_IN
}

fn tables() -> Result<Vec<Message>, NetlinkError> {
    let mut netlink = match Netlink::open_protocol(NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        opened => opened?,
    };
    for _ in 0..ATTEMPTS {
        if let Some(messages) = try_tables(&mut netlink)? {
            return Ok(messages);
        }
    }
    Err(NetlinkError::Restless)
}

/// `None` if something changed meanwhile.
fn try_tables(netlink: &mut Netlink) -> Result<Option<Vec<Message>>, NetlinkError> {
    let get = |kind| Message::new(kind, 0, Vec::new());
    let mut messages = match netlink.list(&get(GETTABLE)) {
        // What a kernel without nftables answers.
        Err(error) if error.errno() == Some(libc::EINVAL) => Vec::new(),
        listed => listed?,
    };
    if messages.is_empty() {
        return Ok(Some(messages));
    }
    for kind in [GETCHAIN, GETOBJ] {
        messages.extend(netlink.list(&get(kind))?);
    }
    let sets = netlink.list(&get(GETSET))?;
    messages.extend_from_slice(&sets);
    for set in &sets {
        let name = only(&set.attributes, &[TABLE, NAME]);
        match netlink.list(&Message::new(GETSETELEM, set.family, name)) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
            listed => messages.extend(listed?),
        }
    }
    messages.extend(netlink.list(&get(GETRULE))?);
    // Each change makes a new generation, which every message names. The last lists may be empty.
    let mut generations = messages
        .iter()
        .map(|message| message.resource)
        .collect::<HashSet<_>>();
    let after = netlink.list(&get(GETTABLE))?;
    generations.extend(after.first().map(|table| table.resource));
    let whole = generations.len() == 1 && !after.is_empty();
    Ok(whole.then_some(messages))
}

/// A kernel names a table here once somebody has used it in the namespace.
fn legacy() -> Vec<String> {
    let mut tables = Vec::new();
    for family in ["ip", "ip6"] {
        // Not there where the kernel has no such tables.
        let names = fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"));
        let names = names.unwrap_or_default();
        tables.extend(names.lines().map(|name| format!("{family} {name}")));
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_may_be_so_many_and_no_more() {
        let parts = |count, length| vec![Message::new(0, 0, vec![0; length]); count];
        assert!(bounded(&[]).is_ok());
        assert!(bounded(&parts(MAX_MESSAGES, 4)).is_ok());
        assert!(bounded(&parts(MAX_MESSAGES + 1, 4)).is_err());
        assert!(bounded(&parts(2, MAX_BYTES / 2)).is_ok());
        assert!(bounded(&parts(2, MAX_BYTES / 2 + 1)).is_err());
        let text = TooMany.to_string();
        assert!(text.contains("10000 parts or 2 MiB"), "{text}");
    }

    #[test]
    fn the_older_kind_is_a_warning_that_names_its_tables() {
        let none = Filters::default();
        assert_eq!(none.left_out(), None);
        let legacy = vec!["ip nat".to_owned(), "ip6 filter".to_owned()];
        let warning = Filters { legacy, ..none }.left_out().unwrap();
        assert!(warning.contains("(ip nat, ip6 filter)"), "{warning}");
    }
}
