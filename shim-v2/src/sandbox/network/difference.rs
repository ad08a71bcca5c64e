//! What the guest has been given and what it should have: the steps from the one to the other.
//! Pure functions.
//!
//! What a step takes away is taken away in the reverse of the order in which it is given. A
//! kernel takes more away by itself: with an address the routes from it, with a link that goes
//! down all of its routes. The pod's namespace may have them still, or again, so those that
//! are to stay are then given once more.

use std::collections::{HashMap, HashSet};

use agent_protocol::agent::{Link as GuestLink, NetworkChange, NetworkRefusal};
use libc::{EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH};
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::netfilter::replay;
use super::netlink::packet;
use super::parameters::Parameter;

/// What a removal may answer: it is gone already.
const GONE: [i32; 4] = [ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL];

/// Something that the guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is, as messages name it.
    pub what: String,
    /// What kind of thing.
    pub kind: Kind,
    /// The request that gives it to the guest, or changes it where it can be changed: one of
    /// rtnetlink(7), a transaction of nfnetlink, or what a kernel parameter is to be.
    pub add: Vec<u8>,
    /// The request that takes it away. Two with the same one are the same thing.
    pub remove: Vec<u8>,
    /// When the end of its life was set, as the pod's kernel tells it: until it is set anew the
    /// guest's copy comes nearer to it by itself. `None` for what has no end.
    pub renewed: Option<u32>,
}

/// The kinds of things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A link that the guest makes itself.
    Made,
    /// The settings of a link.
    Link {
        /// Its number in the guest.
        index: u32,
        /// Its name.
        name: String,
    },
    /// That a link makes no addresses of its own.
    AddressMode,
    /// That a link is a port of a VRF.
    Port,
    /// That a link is up; of one that the guest makes, whether it is.
    Up,
    /// An address of a list.
    Address(AddressList),
    /// A route.
    Route,
    /// A rule of policy routing.
    Rule,
    /// A permanent neighbour.
    Neighbour,
    /// A kernel parameter.
    Parameter {
        /// It is one link's, or that with which new ones begin: it changes with what spreads, and
        /// another link has another.
        of_link: bool,
        /// It is written to links, too, or takes addresses away.
        spreads: bool,
    },
    /// A table of packet filters. Its requests are transactions of nfnetlink.
    Filters,
}

/// Addresses of a link in the guest whose order says which of them a kernel prefers. An address
/// gets its place when it is given, and another one only when it is given anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressList {
    /// Those of one network: the first is the primary one.
    V4 {
        /// The link.
        link: u32,
        /// Its address.
        network: u32,
        /// How many bits of that count.
        prefix: u8,
    },
    /// Those of one scope: the last is taken first.
    V6 {
        /// The link.
        link: u32,
        /// `RT_SCOPE_*`.
        scope: u8,
    },
}

impl Item {
    /// An item that is added with `flags`.
    pub fn new(
        what: String,
        kind: Kind,
        (flags, add): (u16, RouteNetlinkMessage),
        remove: RouteNetlinkMessage,
    ) -> Self {
        Self {
            what,
            kind,
            add: packet(NLM_F_ACK | flags, 1, add),
            remove: packet(NLM_F_ACK, 1, remove),
            renewed: None,
        }
    }

    /// A kernel parameter.
    pub fn parameter(parameter: &Parameter) -> Self {
        let to = |value: &str| format!("{}={value}", parameter.file);
        Self {
            what: format!("parameter {}", to(&parameter.value)),
            kind: Kind::Parameter {
                of_link: parameter.link.is_some() || parameter.file.contains("/conf/default/"),
                spreads: parameter.file.contains("/conf/all/")
                    || parameter.file.ends_with("/disable_ipv6"),
            },
            add: to(&parameter.value).into_bytes(),
            remove: to(parameter.default).into_bytes(),
            renewed: None,
        }
    }

    /// The same with the end of a life that was set then.
    #[must_use]
    pub fn renewed(self, renewed: Option<u32>) -> Self {
        Self { renewed, ..self }
    }

    /// The same for who may have it, or not: it is to be given in any case.
    fn unsure(self) -> Self {
        let (add, renewed) = (Vec::new(), None);
        Self {
            add,
            renewed,
            ..self
        }
    }

    fn is_unsure(&self) -> bool {
        self.add.is_empty()
    }

    /// Its list, if its place in that counts: what has an end has any place.
    fn list(&self) -> Option<AddressList> {
        match self.kind {
            Kind::Address(list) if self.renewed.is_none() => Some(list),
            _ => None,
        }
    }

    /// Whether who was given `earlier` has it.
    fn is_still(&self, earlier: &Self) -> bool {
        let only_older = self.renewed.is_some() && self.renewed == earlier.renewed;
        self.add == earlier.add || only_older
    }

    /// Whether a kernel takes it away, or sets it anew, with what is `swept`.
    fn is_swept(&self, swept: Swept) -> bool {
        match self.kind {
            Kind::Address(_) | Kind::Route | Kind::Neighbour => swept != Swept::Nothing,
            Kind::Parameter { of_link, .. } => of_link && swept >= Swept::Parameters,
            Kind::Made | Kind::Link { .. } | Kind::AddressMode | Kind::Port | Kind::Up => {
                swept == Swept::Links
            }
            _ => false,
        }
    }

    fn step(&self, what: String, request: &[u8], effect: Effect) -> Step {
        let mut step = step(what, request.to_owned(), effect);
        step.change.parameter = matches!(self.kind, Kind::Parameter { .. });
        step.change.netfilter = self.kind == Kind::Filters;
        step
    }

    /// What its end takes away.
    fn sweeps(&self) -> Swept {
        match self.kind {
            Kind::Made => Swept::Links,
            Kind::Link { .. } | Kind::Parameter { spreads: true, .. } => Swept::Parameters,
            Kind::Port | Kind::Up | Kind::Address(_) => Swept::Addresses,
            _ => Swept::Nothing,
        }
    }
}

/// What may have gone with something else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Swept {
    Nothing,
    /// And routes and neighbours.
    Addresses,
    /// The parameters of links, too.
    Parameters,
    /// Even links: those that were made on a link that goes, and they may be made anew.
    Links,
}

/// One request to the guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The request.
    pub change: NetworkChange,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Something is taken away.
    Remove,
    /// A link's name is free for another.
    FreeName,
    /// The item of this number is given.
    Add(usize),
    /// The item of this number is given another way than before.
    Change(usize),
    /// The item of this number is given once more.
    Again(usize),
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Difference {
    removals: Vec<Step>,
    additions: Vec<Step>,
}

impl Difference {
    /// From what was `given` to what is `wanted`.
    pub fn between(given: &[Item], wanted: &[Item]) -> Self {
        let before: HashMap<&[u8], &Item> =
            given.iter().map(|item| (&item.remove[..], item)).collect();
        let after: HashSet<&[u8]> = wanted.iter().map(|item| &item.remove[..]).collect();
        let misplaced = misplaced(given, wanted);
        let stays = |item: &Item| {
            let name = &item.remove[..];
            after.contains(name) && !misplaced.contains(name)
        };
        let stacked = wanted.iter().any(|item| item.kind == Kind::Made);
        let mut swept = Swept::Nothing;
        let mut difference = Self::default();
        for item in given.iter().rev() {
            if !stays(item) {
                swept = swept.max(item.sweeps());
                let what = format!("{}, removed", item.what);
                let step = item.step(what, &item.remove, Effect::Remove);
                difference.removals.push(step);
            }
        }
        for (number, item) in wanted.iter().enumerate() {
            let earlier = before.get(&item.remove[..]).filter(|item| stays(item));
            let effect = match earlier {
                Some(earlier) if item.is_still(earlier) => Effect::Again(number),
                Some(_) => Effect::Change(number),
                None => Effect::Add(number),
            };
            let adds = effect != Effect::Again(number);
            swept = swept.max(match item.kind {
                // Those that were made on a link follow it, up, too, and to another MTU.
                Kind::Link { .. } | Kind::Up if adds && stacked => Swept::Links,
                // With another MTU or Ethernet address a link may lose what it has.
                Kind::Link { .. } if effect == Effect::Change(number) => Swept::Parameters,
                Kind::Parameter { spreads: true, .. } if adds => Swept::Parameters,
                // A link that joins a VRF goes down for a moment.
                Kind::Port if adds => Swept::Addresses,
                _ => Swept::Nothing,
            });
            if adds || item.is_swept(swept) {
                let step = item.step(item.what.clone(), &item.add, effect);
                difference.additions.push(step);
            }
        }
        difference
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.removals.is_empty() && self.additions.is_empty()
    }

    /// The steps in order, for a guest that has these links now.
    pub fn steps(self, wanted: &[Item], guest: &[GuestLink]) -> Vec<Step> {
        let names = free_names(wanted, guest);
        let steps = self.removals.into_iter().chain(names);
        steps.chain(self.additions).collect()
    }
}

/// The addresses, by the requests that take them away, that come in another order than before
/// or behind new ones, so that they have to be given anew.
fn misplaced<'a>(given: &'a [Item], wanted: &'a [Item]) -> HashSet<&'a [u8]> {
    let lists = |items: &'a [Item]| {
        let mut lists: HashMap<AddressList, Vec<&[u8]>> = HashMap::new();
        for item in items {
            if let Some(list) = item.list() {
                lists.entry(list).or_default().push(&item.remove);
            }
        }
        lists
    };
    let wanted = lists(wanted);
    let mut misplaced = HashSet::new();
    for (list, mut given) in lists(given) {
        let wanted = wanted.get(&list).map_or(&[][..], Vec::as_slice);
        given.retain(|name| wanted.contains(name));
        let pairs = given.iter().zip(wanted);
        let in_place = pairs.take_while(|(given, wanted)| given == wanted).count();
        misplaced.extend(&given[in_place..]);
    }
    misplaced
}

fn step(what: String, request: Vec<u8>, effect: Effect) -> Step {
    let change = NetworkChange {
        what,
        request,
        ..NetworkChange::default()
    };
    Step { change, effect }
}

/// Renames the links whose names others are to get.
fn free_names(wanted: &[Item], guest: &[GuestLink]) -> Vec<Step> {
    let names = wanted.iter().filter_map(|item| match &item.kind {
        Kind::Link { index, name } => Some((*index, name.as_str())),
        _ => None,
    });
    let names: HashMap<u32, &str> = names.collect();
    let taken = |link: &&GuestLink| {
        let renamed = names.get(&link.index).is_some_and(|own| *own != link.name);
        renamed && names.values().any(|name| *name == link.name)
    };
    let rename = |link: &GuestLink| {
        let what = format!("link {}, out of the way", link.name);
        let request = packet(NLM_F_ACK, 1, out_of_the_way(link.index));
        step(what, request, Effect::FreeName)
    };
    guest.iter().filter(taken).map(rename).collect()
}

/// Gives the guest's link `index` a name that nobody wants.
pub fn out_of_the_way(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::IfName(unwanted_name(index))];
    RouteNetlinkMessage::SetLink(message)
}

/// A name for the guest's link `index` that no other is to get.
pub fn unwanted_name(index: u32) -> String {
    format!("husk{index}")
}

/// Notes that nobody knows how far the guest has come on the way to what was `wanted`: it may
/// have all of it, and is given it once more.
pub fn doubt(given: &mut Vec<Item>, wanted: Vec<Item>) {
    for item in wanted {
        given.retain(|earlier| earlier.remove != item.remove);
        given.push(item.unsure());
    }
}

/// What the guest has after the steps from what was `given` to what was `wanted`, of which it
/// refused some; and why it did not do what it should have done. An address that it refused
/// keeps its place, so that those behind it are in theirs.
pub fn outcome(
    given: &[Item],
    wanted: Vec<Item>,
    steps: &[Step],
    refusals: Vec<NetworkRefusal>,
) -> (Vec<Item>, Vec<String>) {
    let (mut missing, mut complaints) = (HashSet::new(), Vec::new());
    // An agent that can be trusted tells one of each change.
    let mut told = HashSet::new();
    for refusal in refusals {
        if !told.insert(refusal.change) {
            continue;
        }
        let step = usize::try_from(refusal.change).map(|number| steps.get(number));
        let Ok(Some(step)) = step else {
            complaints.push(refusal.text);
            continue;
        };
        let there = |number: usize| {
            let adds = matches!(wanted[number].kind, Kind::Made | Kind::Route | Kind::Rule);
            adds && refusal.errno == EEXIST
        };
        let forgiven = match step.effect {
            Effect::Remove => GONE.contains(&refusal.errno),
            Effect::FreeName => false,
            // It is somebody else's, and not to be removed one day.
            Effect::Add(number) => {
                missing.insert(number);
                there(number)
            }
            Effect::Change(number) | Effect::Again(number) => {
                if !there(number) {
                    missing.insert(number);
                }
                there(number)
            }
        };
        if !forgiven {
            complaints.push(complaint(&step.change, refusal));
        }
    }
    let changes = steps.iter().filter_map(|step| match step.effect {
        Effect::Change(number) => Some(number),
        _ => None,
    });
    let changes: HashSet<usize> = changes.collect();
    let (mut has, mut late) = (Vec::new(), Vec::new());
    for (number, item) in wanted.into_iter().enumerate() {
        let same = |given: &&Item| changes.contains(&number) && given.remove == item.remove;
        let before = given.iter().find(same);
        match (before, missing.contains(&number)) {
            // What was refused to change is there as before.
            (Some(before), true) => has.push(before.clone()),
            (None, true) => has.extend(item.list().map(|_| item.unsure())),
            // What is taken at last is behind the others, until the next look.
            (Some(before), false) if before.is_unsure() && item.list().is_some() => late.push(item),
            (_, false) => has.push(item),
        }
    }
    has.extend(late);
    (has, complaints)
}

/// Of a transaction it says which part, and what can be done.
fn complaint(change: &NetworkChange, refusal: NetworkRefusal) -> String {
    if change.parameter {
        let text = refusal.text;
        return format!(
            "{text}: take it out of the namespace, or set it in `kernel_params` as sysctl.NAME=VALUE"
        );
    }
    if !change.netfilter {
        return refusal.text;
    }
    let part = replay::part(&change.request, refusal.message);
    let part = part.map_or_else(String::new, |part| format!(", at {part}"));
    let text = refusal.text;
    format!("{text}{part}: take it out of the namespace, or set `netfilter` to \"ignore\"")
}

#[cfg(test)]
#[path = "difference_test.rs"]
mod tests;
