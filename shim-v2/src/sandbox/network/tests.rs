//! With the kernel of this machine, in a network namespace of the test's own.

use std::fs::File;
use std::io::{Read, Write};
use std::iter;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use agent_protocol::agent::{Link as GuestLink, NetworkRefusal};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::CloneFlags;

use super::super::state_file::State;
use super::attach::filtered;
use super::difference::{Difference, Item, Kind};
use super::scan::Backend;
use super::*;

/// Does `work` in the namespace of a path.
pub(super) fn within<T: Send>(
    path: &Path,
    work: impl FnOnce(&mut Netlink) -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    super::Namespace::open(path)?.within(work)
}

/// Length of the header of virtio-net before each frame of a tap.
const HEADER: usize = 10;
/// An EtherType for local experiments.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// A namespace with a thread in it. Gone when dropped.
pub(super) struct Namespace {
    pub(super) path: PathBuf,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// `None` where this user may not have one.
    pub(super) fn new() -> Option<Self> {
        let (made, path) = channel();
        let (end, ended) = channel::<()>();
        let thread = thread::spawn(move || {
            let unshared = nix::sched::unshare(CloneFlags::CLONE_NEWNET);
            let (process, thread) = (nix::unistd::getpid(), nix::unistd::gettid());
            let path = format!("/proc/{process}/task/{thread}/ns/net");
            made.send(unshared.map(|()| path.into())).unwrap();
            ended.recv().unwrap_err();
        });
        let path = path.recv().unwrap().ok()?;
        let own = Self {
            path,
            end: Some(end),
            thread: Some(thread),
        };
        Path::new("/dev/net/tun").exists().then_some(own)
    }

    fn change(&self, request: RouteNetlinkMessage) {
        let changed = within(&self.path, |netlink| {
            let changed = netlink.change(NLM_F_CREATE | NLM_F_EXCL, request);
            changed.map_err(|source| NetworkError::List { what: "", source })
        });
        changed.unwrap();
    }

    /// A veth with both ends in it.
    fn add_veth(&self) {
        let named = |name: &str, flags| {
            let mut link = LinkMessage::default();
            link.header.flags = flags;
            link.header.change_mask = flags;
            // Wider than a tap can be.
            let mtu = LinkAttribute::Mtu(u16::MAX.into());
            link.attributes = vec![LinkAttribute::IfName(name.to_owned()), mtu];
            link
        };
        let mut veth = named("eth0", LinkFlags::Up);
        let peer = InfoVeth::Peer(named("peer", LinkFlags::empty()));
        veth.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(peer)),
        ]));
        self.change(RouteNetlinkMessage::NewLink(veth));
        // It cannot be up before there is the other end.
        self.change(RouteNetlinkMessage::SetLink(named("peer", LinkFlags::Up)));
    }

    /// Kinds of the queueing disciplines of link `index`.
    fn qdiscs(&self, index: u32) -> Vec<String> {
        let all = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let listed = within(&self.path, |netlink| {
            let what = "queueing disciplines";
            let failed = |source| NetworkError::List { what, source };
            netlink.list(&all).map_err(failed)
        });
        let kinds = listed
            .unwrap()
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewQueueDiscipline(qdisc)
                    if qdisc.header.index == index as i32 =>
                {
                    qdisc
                        .attributes
                        .into_iter()
                        .find_map(|attribute| match attribute {
                            TcAttribute::Kind(kind) => Some(kind),
                            _ => None,
                        })
                }
                _ => None,
            });
        kinds.filter(|kind| kind == "clsact").collect()
    }

    /// Has iproute2 change it; `false` where there is none, or a kernel without such things.
    fn ip(&self, commands: &str) -> bool {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.path.display()));
        let done = nsenter.args(["sh", "-ec", commands]).status();
        done.is_ok_and(|status| status.success())
    }

    fn links(&self) -> Vec<String> {
        let scan = within(&self.path, scan::scan).unwrap();
        scan.links.into_iter().map(|link| link.name).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// An Ethernet frame of a protocol for experiments to everybody, behind an empty header of
/// virtio-net.
fn frame(byte: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, byte]);
    frame.extend(EXPERIMENT);
    frame.extend([byte; 46]);
    frame
}

fn is_ours(frame: &[u8]) -> bool {
    frame.get(HEADER + 12..HEADER + 14) == Some(&EXPERIMENT)
}

/// The next frame of a tap, if there is one within `wait` milliseconds.
fn read(mut tap: &File, wait: u16) -> Option<Vec<u8>> {
    let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, wait).unwrap();
    let mut frame = vec![0; 2048];
    let length = tap.read(&mut frame).ok()?;
    frame.truncate(length);
    Some(frame)
}

#[test]
fn a_namespace_is_connected_and_left_as_it_was() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(StateFile::create(dir.path().join("s"), State::default()).unwrap());
    let connect = || {
        let name = Some(namespace.path.clone());
        connect(file.clone(), &namespace.path, name, &Config::default()).unwrap()
    };
    let (nics, network) = connect();
    assert!(nics.is_empty() && network.scan.links.is_empty());

    namespace.add_veth();
    let links = namespace.links();
    assert_eq!(links.len(), 2, "{links:?}");
    let (nics, network) = connect();
    assert_eq!(nics.len(), 2);
    let scanned = &network.scan.links;
    assert_eq!(scanned[0].mac, nics[0].mac);
    for link in scanned {
        assert_eq!(namespace.qdiscs(link.index), ["clsact"], "{}", link.name);
    }
    let redirects = file.state().redirects.unwrap();
    assert_eq!(redirects.links.len(), 2);
    // What is written to the one tap leaves by its link, arrives at the other, and is read there.
    let [first, second] = [0, 1].map(|nic: usize| File::from(nics[nic].tap.try_clone().unwrap()));
    for (from, to, byte) in [(&first, &second, 1), (&second, &first, 2)] {
        let frame = frame(byte);
        (&*from).write_all(&frame).unwrap();
        let arrived = iter::from_fn(|| read(to, 5000)).find(|read| is_ours(read));
        assert_eq!(arrived.as_deref(), Some(frame.as_slice()));
        assert!(!iter::from_fn(|| read(from, 0)).any(|read| is_ours(&read)));
    }
    drop((first, second));

    drop(nics);
    // Twice: clean-up may run any number of times.
    redirects.remove().unwrap();
    redirects.remove().unwrap();
    for link in &network.scan.links {
        assert!(namespace.qdiscs(link.index).is_empty(), "{}", link.name);
    }
    assert_eq!(namespace.links(), links);
}

#[tokio::test]
async fn links_are_connected_and_let_go_later() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(StateFile::create(dir.path().join("s"), State::default()).unwrap());
    let name = Some(namespace.path.clone());
    let (_, network) = connect(file.clone(), &namespace.path, name, &Config::default()).unwrap();
    let netns = network.netns;
    let events = events::Events::new(network.events).unwrap();
    namespace.add_veth();
    let (scan, redirected) = netns.look().unwrap();
    assert_eq!((scan.links.len(), redirected.len()), (2, 0));
    let link = &scan.links[0];
    let (nic, redirect) = netns.attach(link).unwrap();
    let redirect = redirect.unwrap();
    assert_eq!((nic.mac, redirect.link), (link.mac, link.index));
    // A second tap for it cannot be, and leaves nothing.
    let refused = netns.attach(link).unwrap_err().to_string();
    assert!(
        refused.ends_with("one pod per network namespace"),
        "{refused}"
    );
    // The tap is none of the pod's links.
    let (again, redirected) = netns.look().unwrap();
    assert_eq!(again.links, scan.links);
    assert!(again.problems.is_empty());
    assert_eq!(redirected, [link.index]);
    assert_eq!(file.state().redirects.unwrap().links, [redirect]);
    netns.detach(redirect).unwrap();
    netns.detach(redirect).unwrap();
    drop(nic);
    assert!(namespace.qdiscs(link.index).is_empty());
    assert!(file.state().redirects.unwrap().links.is_empty());

    // Somebody puts a discipline of his own in the place of ours, which is told and left to him.
    let (_nic, redirect) = netns.attach(link).unwrap();
    let redirect = redirect.unwrap();
    while events.drain() {}
    let own = format!("dev {} clsact", link.name);
    if !namespace.ip(&format!("tc qdisc del {own}; tc qdisc add {own}")) {
        eprintln!("skipped: needs iproute2");
        return;
    }
    assert!(events.drain() && netns.look().unwrap().1.is_empty());
    netns.detach(redirect).unwrap();
    assert_eq!(namespace.qdiscs(link.index), ["clsact"]);
    assert!(file.state().redirects.unwrap().links.is_empty());
}

#[tokio::test]
async fn a_tap_that_nobody_holds_is_opened_itself() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    let taps = "ip tuntap add free mode tap; ip tuntap add many mode tap multi_queue";
    if !namespace.ip(taps) {
        eprintln!("skipped: needs iproute2");
        return;
    }
    let links = namespace.links();
    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(StateFile::create(dir.path().join("s"), State::default()).unwrap());
    let name = Some(namespace.path.clone());
    let (nics, network) = connect(file.clone(), &namespace.path, name, &Config::default()).unwrap();
    assert_eq!(network.redirects, [None, None]);
    assert_eq!(namespace.links(), links);
    assert!(file.state().redirects.is_none());
    // Held, it is like any other link: who holds it is at its far end.
    let backends = |scan: Scan| scan.links.into_iter().map(|link| link.backend);
    let held: Vec<_> = backends(network.netns.look().unwrap().0).collect();
    assert_eq!(held, [Backend::Redirected; 2]);
    let other = network.netns.attach(&network.scan.links[0]).unwrap_err();
    assert!(other.to_string().contains("another program"), "{other}");
    drop(nics);
    let left: Vec<_> = backends(network.netns.look().unwrap().0).collect();
    assert_eq!(left, [Backend::Tap; 2]);
    // One that went meanwhile is not made anew.
    assert!(namespace.ip("ip link del free"));
    let gone = network.netns.attach(&network.scan.links[0]).unwrap_err();
    assert!(gone.to_string().contains("the tap free"), "{gone}");
    assert!(!namespace.links().iter().any(|link| link == "free"));
}

#[test]
fn lo_of_a_namespace_without_a_name_is_brought_up() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    let lo = || {
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let what = "links";
        let failed = |source| NetworkError::List { what, source };
        within(&namespace.path, |netlink| {
            netlink.list(&all).map_err(failed)
        })
    };
    let is_up = || {
        lo().unwrap().iter().any(|message| {
            matches!(message, RouteNetlinkMessage::NewLink(link)
                if link.header.index == scan::LOOPBACK && link.header.flags.contains(LinkFlags::Up))
        })
    };
    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(StateFile::create(dir.path().join("s"), State::default()).unwrap());
    let named = Some(namespace.path.clone());
    connect(file.clone(), &namespace.path, named, &Config::default()).unwrap();
    assert!(!is_up());
    connect(file, &namespace.path, None, &Config::default()).unwrap();
    assert!(is_up());
}

#[tokio::test]
async fn a_change_is_told_before_it_is_over() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    let socket = within(&namespace.path, |_| {
        events::open(true).map_err(NetworkError::Follow)
    });
    let events = events::Events::new(socket.unwrap()).unwrap();
    assert!(!events.drain());
    if !namespace.ip("echo 1 >/proc/sys/net/ipv4/ip_forward") {
        eprintln!("skipped: needs nsenter");
        return;
    }
    assert!(events.drain());
    assert!(!events.drain());
    namespace.add_veth();
    // The kernel has more to tell later on: of the carrier, of addresses it made.
    assert!(events.drain());
    // More than the socket has room for: that they are lost is told as well.
    let toggle = |flags| {
        let mut message = LinkMessage::default();
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![LinkAttribute::IfName("eth0".to_owned())];
        RouteNetlinkMessage::SetLink(message)
    };
    let many = within(&namespace.path, |netlink| {
        for _ in 0..500 {
            for flags in [LinkFlags::empty(), LinkFlags::Up] {
                netlink.change(0, toggle(flags)).unwrap();
            }
        }
        Ok(())
    });
    many.unwrap();
    let told = tokio::time::timeout(std::time::Duration::from_secs(5), events.changed());
    told.await.unwrap();
    while events.drain() {}
}

#[test]
fn what_somebody_else_has_on_a_link_stays() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    namespace.add_veth();
    let scan = within(&namespace.path, scan::scan).unwrap();
    let index = scan.links[0].index;
    let add = |netlink: &mut Netlink| {
        let theirs = redirect::plan(&filtered(netlink).unwrap(), index);
        theirs.add(netlink, scan.links[1].index).unwrap();
        let ours = redirect::plan(&filtered(netlink).unwrap(), index);
        assert!(theirs.own_qdisc && !ours.own_qdisc);
        // They were quicker with the discipline, or have a filter of our preference.
        for redirect in [theirs, ours] {
            redirect.add(netlink, scan.links[1].index).unwrap_err();
            assert!(redirect::is_on(netlink, index).unwrap());
        }
        ours.remove(netlink).unwrap();
        ours.remove(netlink).unwrap();
        // The filter had our preference; the discipline is still there for a new one.
        ours.add(netlink, scan.links[1].index).unwrap();
        Ok(())
    };
    within(&namespace.path, add).unwrap();
    assert_eq!(namespace.qdiscs(index), ["clsact"]);
}

/// A pod's links with all that a plugin could think of.
const POD: &str = "
    ip link set lo up
    ip link add eth0 type veth peer name a
    ip link add net1 type veth peer name b
    ip link set eth0 mtu 1450 address 02:00:00:00:00:07 alias first
    ip link set net1 address 02:00:00:00:00:08 txqueuelen 77 group 7 allmulticast on
    ip address add 10.77.0.2/24 brd + dev eth0
    ip address add 10.77.0.3/24 dev eth0
    ip address add 10.77.9.9/32 dev lo
    ip address add 10.76.0.1/24 dev lo metric 9 valid_lft forever preferred_lft 0
    ip address add fd77::2/64 dev eth0 nodad
    ip address add 10.78.0.2 peer 10.78.0.1/32 dev net1
    for link in eth0 net1 a b; do ip link set dev $link up; done
    ip route add default via 10.77.0.1
    ip route del 10.77.0.0/24 dev eth0
    ip route add 10.77.0.0/24 dev eth0 src 10.77.0.3 metric 9
    ip route add 10.99.0.0/16 via 10.78.0.1 metric 77 proto static mtu lock 1300
    ip route add 10.95.0.0/16 via 10.77.0.1 mtu 1400 congctl reno
    ip route add default via 10.78.0.1 dev net1 table 100
    ip route add default via 10.78.0.1 dev net1 table 1000
    ip route add blackhole 10.98.0.0/16
    ip route add 10.97.0.0/16 nexthop via 10.77.0.1 weight 1 nexthop via 10.78.0.1 dev net1 weight 3
    ip route add 10.96.0.0/16 via 192.0.2.1 dev eth0 onlink
    ip -6 route add default via fd77::1 metric 55
    ip -6 route add fd98::/64 nexthop via fd77::3 nexthop via fd77::4
    ip -6 route add fd99::/64 via fd77::1 table 100
    ip rule add from 10.78.0.2 lookup 100
    ip rule add fwmark 5/7 iif eth0 lookup 1000 priority 500
    ip -6 rule add from fd78::2 lookup 100
    ip rule add tun_id 5 lookup 100
    ip neighbour add 10.77.0.200 lladdr 02:00:00:00:00:aa dev eth0 nud permanent
    ip neighbour add fd77::99 lladdr 02:00:00:00:00:bb dev eth0 nud permanent
    ip neighbour add 10.77.0.201 lladdr 02:00:00:00:00:cc dev eth0 nud noarp
    ip neighbour add proxy 10.77.0.202 dev eth0
    ip neighbour add proxy fd77::202 dev net1";

/// What a guest has of these when it is born, under other names and numbers.
const GUEST: &str = "
    ip link set lo up
    ip link add unused type veth peer name c
    ip link add net1 type veth peer name d
    ip link add eth0 type veth peer name e
    ip link set net1 address 02:00:00:00:00:07
    ip link set eth0 address 02:00:00:00:00:08
    for link in c d e; do ip link set dev $link up; done
    ip link del unused";

/// The same with a VRF; what is a port of one has its routes in one table.
const POD_WITH_VRF: &str = "
    ip link set lo up
    ip link add eth0 type veth peer name a
    ip link add net1 type veth peer name b
    ip link set eth0 address 02:00:00:00:00:07
    ip link set net1 address 02:00:00:00:00:08
    ip link add red type vrf table 1000
    ip link set red address 02:00:00:00:00:09 up
    for link in eth0 net1 a b; do ip link set dev $link up; done
    ip link set net1 master red
    ip address add 127.0.0.1/8 dev red
    ip address add 10.77.0.2/24 dev eth0
    ip address add 10.78.0.2/24 brd + dev net1
    ip address add fd78::2/64 dev net1 nodad
    ip route add default via 10.77.0.1
    ip route add default via 10.78.0.1 table 1000
    ip -6 route add default via fd78::1 table 1000
    ip route add unreachable 10.99.0.0/16 table 1000
    ip route add 10.98.0.0/16 dev red";

#[test]
fn a_guest_that_was_told_has_what_was_told() {
    tell(POD, "needs iproute2 and policy routing");
}

#[test]
fn a_guest_that_was_told_of_a_vrf_has_it() {
    tell(POD_WITH_VRF, "needs iproute2 and VRFs");
}

#[test]
fn a_guest_prefers_the_addresses_that_the_pod_does() {
    let added = |address: &str| {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        format!("ip address add {address} dev eth0 {nodad}")
    };
    let anew = |address| format!("ip address del {address} dev eth0; {}", added(address));
    let steps = [
        format!("{POD}\n{}", added("fd77::12/64")),
        added("fd77::13/64"),
        format!("{}; {}", anew("fd77::12/64"), anew("fd77::2/64")),
        anew("fd77::13/64"),
        ["10.88.0.2/24", "10.88.0.3/24", "10.88.0.4/24"]
            .map(added)
            .join("; "),
        anew("10.88.0.3/24"),
        // What is changed in place keeps its label.
        format!("{} label eth0:x", anew("10.88.0.4/24")),
    ];
    tell_of(&steps.each_ref().map(String::as_str), "needs iproute2");
}

/// Tells a guest of the network that a script makes.
fn tell(script: &str, needs: &str) {
    tell_of(&[script], needs);
}

/// The same for what one script after another makes of it.
fn tell_of(scripts: &[&str], needs: &str) {
    let [pod, guest] = [Namespace::new(), Namespace::new()];
    let (Some(pod), Some(guest)) = (pod, guest) else {
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    };
    let mut given = Vec::new();
    for (number, script) in scripts.iter().enumerate() {
        if !pod.ip(script) || number == 0 && !guest.ip(GUEST) {
            eprintln!("skipped: {needs}");
            return;
        }
        let scan = scan_of(&pod);
        given = apply(&guest, &given, scan.items(&guest));
        let again = scan_of(&guest).items(&guest);
        assert_eq!(sorted(&again), sorted(&given), "{script}");
        assert_eq!(addresses(&again), addresses(&given), "{script}");
    }
    // And has it no longer when it was told so.
    assert_eq!(apply(&guest, &given, Vec::new()), []);
    assert_eq!(within(&guest.path, scan::scan).unwrap().made, []);
}

/// What is in a namespace of [`POD`] or [`GUEST`].
struct Pod(Scan);

fn scan_of(namespace: &Namespace) -> Pod {
    let mut scan = within(&namespace.path, scan::scan).unwrap();
    // The other ends are none of the pod's.
    scan.links
        .retain(|link| ["eth0", "net1"].contains(&link.name.as_str()));
    let ours: Vec<u32> = scan.all_links().map(|link| link.index).collect();
    scan.addresses
        .retain(|address| address.header.index == 1 || ours.contains(&address.header.index));
    Pod(scan)
}

impl Pod {
    fn items(&self, guest: &Namespace) -> Vec<Item> {
        let there = guest_links(guest);
        let pairs = mirror::pair(&self.0.links, &there).unwrap();
        mirror::items(&self.0, &pairs)
    }
}

fn guest_links(guest: &Namespace) -> Vec<GuestLink> {
    let links = within(&guest.path, scan::scan).unwrap().links;
    links.iter().map(guest_link).collect()
}

fn guest_link(link: &scan::Link) -> GuestLink {
    GuestLink {
        index: link.index,
        name: link.name.clone(),
        mac: link.mac.to_vec(),
        ..GuestLink::default()
    }
}

/// What the agent does with what is wanted.
fn apply(guest: &Namespace, given: &[Item], wanted: Vec<Item>) -> Vec<Item> {
    let steps = Difference::between(given, &wanted).steps(&wanted, &guest_links(guest));
    let requests = steps.iter().zip(0..).filter_map(|(step, change)| {
        let message = decode::decode(&step.change.request).unwrap();
        let NetlinkPayload::InnerMessage(request) = message.payload else {
            panic!("{}", step.change.what);
        };
        let changed = within(&guest.path, |netlink| {
            Ok(netlink.change(message.header.flags, request))
        });
        let error = changed.unwrap().err()?;
        let text = format!("{}: {}", step.change.what, crate::error::chain(&error));
        let errno = error.errno().unwrap();
        Some(NetworkRefusal {
            change,
            errno,
            text,
            ..NetworkRefusal::default()
        })
    });
    let refusals = requests.collect();
    let (has, complaints) = difference::outcome(given, wanted, &steps, refusals);
    assert_eq!(complaints, [""; 0]);
    has
}

/// Those of each link, in order.
fn addresses(items: &[Item]) -> Vec<&str> {
    let addresses = items
        .iter()
        .filter(|item| matches!(item.kind, Kind::Address(_)));
    let mut addresses: Vec<&str> = addresses.map(|item| item.what.as_str()).collect();
    addresses.sort_by_key(|what| what.rsplit(' ').next());
    addresses
}

/// In an order of their own.
fn sorted(items: &[Item]) -> Vec<String> {
    let tell = |item: &Item| {
        let message = decode::decode::<RouteNetlinkMessage>(&item.add);
        format!("{}: {:?}", item.what, message.unwrap().payload)
    };
    let mut sorted: Vec<String> = items.iter().map(tell).collect();
    sorted.sort();
    sorted
}

#[test]
fn a_namespace_that_is_gone_has_nothing_to_be_removed() {
    let redirects = Redirects {
        netns: "/run/netns/never-there".into(),
        inode: 1,
        links: Vec::new(),
    };
    redirects.remove().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for netns in ["/proc/self/ns/net".into(), fifo] {
        let other = Redirects {
            netns,
            ..redirects.clone()
        };
        other.remove().unwrap();
    }
    // Nobody knows whether it is gone.
    let unknown = Redirects {
        netns: "/proc/self/exe/net".into(),
        ..redirects
    };
    unknown.remove().unwrap_err();
}
