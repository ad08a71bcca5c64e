use super::*;

const UP: Kind = Kind::Up;
const ADDRESS: Kind = Kind::Address(AddressList::V6 { link: 2, scope: 0 });

fn item(what: &str, kind: Kind, add: u8) -> Item {
    Item {
        what: what.to_owned(),
        kind,
        add: vec![add],
        remove: what.as_bytes().to_owned(),
        renewed: None,
    }
}

fn link(index: u32, name: &str) -> Item {
    let kind = Kind::Link {
        index,
        name: name.to_owned(),
    };
    item(&format!("link {index}"), kind, name.len() as u8)
}

fn there(index: u32, name: &str) -> GuestLink {
    GuestLink {
        index,
        name: name.to_owned(),
        ..GuestLink::default()
    }
}

/// A link with an address, a route and a rule.
fn pod() -> Vec<Item> {
    vec![
        link(2, "eth0"),
        item("up", UP, 1),
        item("address", ADDRESS, 1),
        item("route", Kind::Route, 1),
        item("rule", Kind::Rule, 1),
    ]
}

fn steps(given: &[Item], wanted: &[Item]) -> Vec<Step> {
    Difference::between(given, wanted).steps(wanted, &[])
}

fn whats(steps: &[Step]) -> Vec<&str> {
    steps.iter().map(|step| step.change.what.as_str()).collect()
}

#[test]
fn everything_is_given_in_order_and_taken_away_in_reverse() {
    let given = steps(&[], &pod());
    assert_eq!(whats(&given), ["link 2", "up", "address", "route", "rule"]);
    let taken = steps(&pod(), &[]);
    let removed = ["rule", "route", "address", "up", "link 2"];
    let removed = removed.map(|what| format!("{what}, removed"));
    assert_eq!(whats(&taken), removed);
    assert_eq!(taken[0].change.request, b"rule");
    assert!(Difference::between(&pod(), &pod()).is_empty());
    assert!(!Difference::between(&pod(), &[]).is_empty());
}

#[test]
fn what_goes_with_an_address_or_a_link_is_given_again() {
    for (gone, again) in [("address", vec!["route"]), ("up", vec!["address", "route"])] {
        let mut wanted = pod();
        wanted.retain(|item| item.what != gone);
        let mut expected = vec![format!("{gone}, removed")];
        expected.extend(again.into_iter().map(str::to_owned));
        assert_eq!(whats(&steps(&pod(), &wanted)), expected);
    }
    let mut wanted = pod();
    wanted.retain(|item| item.what != "rule");
    assert_eq!(whats(&steps(&pod(), &wanted)), ["rule, removed"]);
}

#[test]
fn what_can_be_changed_in_place_is() {
    let mut wanted = pod();
    wanted[2].add = vec![9];
    assert_eq!(whats(&steps(&pod(), &wanted)), ["address"]);
    let mut wanted = pod();
    wanted[0].add = vec![9];
    let all = ["link 2", "address", "route"];
    assert_eq!(whats(&steps(&pod(), &wanted)), all);
}

#[test]
fn what_goes_when_a_link_joins_or_leaves_a_vrf_is_given_again() {
    let mut in_vrf = pod();
    in_vrf.insert(0, item("VRF", Kind::Made, 1));
    in_vrf.insert(2, item("port", Kind::Port, 1));
    let joined = steps(&pod(), &in_vrf);
    assert_eq!(whats(&joined), ["VRF", "port", "address", "route"]);
    let left = steps(&in_vrf, &pod());
    let expected = [
        "port, removed",
        "VRF, removed",
        "link 2",
        "up",
        "address",
        "route",
    ];
    assert_eq!(whats(&left), expected);
    let mut in_other = in_vrf.clone();
    in_other[2].add = vec![2];
    let moved = steps(&in_vrf, &in_other);
    assert_eq!(whats(&moved), ["port", "address", "route"]);
}

#[test]
fn a_link_that_is_made_anew_is_given_all_it_had() {
    let made_on = |lower: &str| {
        let mut pod = pod();
        pod.insert(0, item("upper", Kind::Made, 1));
        pod.insert(0, item(lower, Kind::Made, 1));
        pod
    };
    let steps = steps(&made_on("one"), &made_on("other"));
    let expected = [
        "one, removed",
        "other",
        "upper",
        "link 2",
        "up",
        "address",
        "route",
    ];
    assert_eq!(whats(&steps), expected);
    // What is on a link follows its changes.
    let mut higher = made_on("one");
    higher[2].add = vec![9];
    let again = Difference::between(&made_on("one"), &higher).steps(&higher, &[]);
    assert_eq!(whats(&again), ["link 2", "up", "address", "route"]);
    // That one did not go with its lower link is no complaint.
    let there = outcome(&[], made_on("other"), &steps, vec![refusal(2, EEXIST)]);
    assert_eq!(there, (made_on("other"), Vec::new()));
}

#[test]
fn what_is_set_for_all_links_takes_along_what_is_set_for_one() {
    let parameter = |file: &str, value: &str, link| {
        Item::parameter(&Parameter {
            link,
            file: format!("net/ipv6/conf/{file}"),
            value: value.to_owned(),
            default: "0",
        })
    };
    let one = parameter("eth0/forwarding", "1", Some(7));
    let both = [parameter("all/forwarding", "1", None), one.clone()];
    let link = "parameter net/ipv6/conf/eth0/forwarding=1";
    let all = "parameter net/ipv6/conf/all/forwarding=1";
    let removed = format!("{all}, removed");
    assert_eq!(whats(&steps(&both, &[one])), [&removed, link]);
    let other = [parameter("all/forwarding", "2", None), both[1].clone()];
    let changed = "parameter net/ipv6/conf/all/forwarding=2";
    assert_eq!(whats(&steps(&both, &other)), [changed, link]);
    // And what takes addresses away, these; an address takes no parameter.
    let mut given = vec![parameter("eth0/accept_ra", "1", Some(7))];
    given.extend(pod());
    let mut wanted = given.clone();
    wanted.insert(0, parameter("eth0/disable_ipv6", "1", Some(7)));
    let again = [
        "parameter net/ipv6/conf/eth0/disable_ipv6=1",
        "parameter net/ipv6/conf/eth0/accept_ra=1",
        "address",
        "route",
    ];
    assert_eq!(whats(&steps(&given, &wanted)), again);
    let mut wanted = given.clone();
    wanted.retain(|item| item.kind != ADDRESS);
    let again = ["address, removed", "route"];
    assert_eq!(whats(&steps(&given, &wanted)), again);
}

fn addresses(names: &str) -> Vec<Item> {
    let names = names.split_whitespace();
    names.map(|name| item(name, ADDRESS, 1)).collect()
}

#[test]
fn addresses_are_given_anew_where_their_order_changed() {
    for (given, wanted, expected) in [
        ("a b", "a b c", "c"),
        ("a b c", "a c", "b- a c"),
        ("a b c", "a c b", "c- b- a c b"),
        ("a b", "c a b", "b- a- c a b"),
        ("a b c", "c d", "b- a- c d"),
    ] {
        let steps = steps(&addresses(given), &addresses(wanted));
        let whats = whats(&steps).join(" ").replace(", removed", "-");
        assert_eq!(whats, expected, "{given} -> {wanted}");
    }
    // What has an end has any place, and lists know nothing of each other.
    let mut given = addresses("a b");
    given[0].renewed = Some(1);
    let wanted = [given[1].clone(), given[0].clone()];
    assert!(Difference::between(&given, &wanted).is_empty());
    let mut given = addresses("a b");
    given[0].kind = Kind::Address(AddressList::V6 { link: 3, scope: 0 });
    let wanted = [given[1].clone(), given[0].clone()];
    assert!(Difference::between(&given, &wanted).is_empty());
}

#[test]
fn names_that_others_are_to_get_are_freed_first() {
    let wanted = [link(2, "eth1"), link(3, "eth0"), link(4, "net1")];
    let guest = [
        there(2, "eth0"),
        there(3, "eth1"),
        there(4, "eth2"),
        there(5, "net1"),
    ];
    let steps = Difference::between(&[], &wanted).steps(&wanted, &guest);
    let expected = [
        "link eth0, out of the way",
        "link eth1, out of the way",
        "link 2",
        "link 3",
        "link 4",
    ];
    assert_eq!(whats(&steps), expected);
    let guest = [there(2, "eth1"), there(3, "eth0")];
    let steps = Difference::between(&[], &wanted[..2]).steps(&wanted[..2], &guest);
    assert_eq!(whats(&steps), ["link 2", "link 3"]);
}

#[test]
fn those_behind_a_refused_address_are_left_in_peace() {
    let mut wanted = addresses("a b c");
    let mut given = Vec::new();
    let mut look = |wanted: &[Item], refused: &[&str]| {
        let steps = steps(&given, wanted);
        let whats = whats(&steps).join(" ").replace(", removed", "-");
        let number = |what: &&str| steps.iter().position(|step| step.change.what == **what);
        let refused = refused.iter().filter_map(number);
        let refused = refused.map(|number| refusal(number as u32, libc::EINVAL));
        let done = outcome(&given, wanted.to_vec(), &steps, refused.collect());
        given = done.0;
        (whats, done.1.len())
    };
    assert_eq!(look(&wanted, &["b"]), ("a b c".into(), 1));
    for _ in 0..2 {
        assert_eq!(look(&wanted, &["b"]), ("b".into(), 1));
    }
    wanted.extend(addresses("d"));
    assert_eq!(look(&wanted, &["b"]), ("b d".into(), 1));
    // When it is taken at last it is behind them, and they have to come behind it.
    assert_eq!(look(&wanted, &[]), ("b".into(), 0));
    assert_eq!(look(&wanted, &[]), ("b- d- c- a b c d".into(), 0));
    assert_eq!(look(&wanted, &[]), (String::new(), 0));
}

fn refusal(change: u32, errno: i32) -> NetworkRefusal {
    NetworkRefusal {
        change,
        errno,
        text: format!("{change} refused"),
        ..NetworkRefusal::default()
    }
}

#[test]
fn what_was_refused_is_not_had_and_said() {
    let given = steps(&[], &pod());
    let refused = vec![refusal(2, libc::EINVAL), refusal(4, EEXIST)];
    let (has, complaints) = outcome(&[], pod(), &given, refused);
    // Somebody else's rule serves as well, and is not ours to remove.
    assert_eq!(complaints, ["2 refused"]);
    let whats: Vec<&str> = has.iter().map(|item| item.what.as_str()).collect();
    // Of an address the place is kept.
    assert_eq!(whats, ["link 2", "up", "address", "route"]);
    // They are tried again.
    assert_eq!(steps(&has, &pod()).len(), 2);
    // A name that another has is no success.
    let (has, complaints) = outcome(&[], pod(), &given, vec![refusal(0, EEXIST)]);
    assert_eq!((has.len(), complaints.len()), (4, 1));
}

#[test]
fn what_is_gone_or_there_already_is_no_reason_to_complain() {
    let mut wanted = pod();
    wanted.retain(|item| item.what != "address");
    let steps = steps(&pod(), &wanted);
    let refused = vec![refusal(0, EADDRNOTAVAIL), refusal(1, EEXIST)];
    let (has, complaints) = outcome(&pod(), wanted.clone(), &steps, refused);
    assert_eq!(complaints, [""; 0]);
    assert_eq!(has, wanted);
    // Swept away, and then refused.
    let (has, complaints) = outcome(&pod(), wanted, &steps, vec![refusal(1, libc::ENETUNREACH)]);
    assert_eq!((has.len(), complaints.len()), (3, 1));
}

#[test]
fn a_refusal_of_no_step_is_said_and_harms_nobody() {
    let (has, complaints) = outcome(
        &pod(),
        pod(),
        &[],
        vec![refusal(7, EEXIST), refusal(u32::MAX, 0)],
    );
    assert_eq!((has, complaints.len()), (pod(), 2));
}

#[test]
fn what_was_refused_to_change_is_as_before() {
    let mut wanted = pod();
    wanted[2].add = vec![2];
    let changes = steps(&pod(), &wanted);
    assert_eq!(whats(&changes), ["address"]);
    let (has, complaints) = outcome(
        &pod(),
        wanted.clone(),
        &changes,
        vec![refusal(0, libc::EINVAL)],
    );
    assert_eq!((has.len(), complaints.len()), (5, 1));
    assert!(has.contains(&pod()[2]));
    // It is tried again, and taken away when it is not wanted any more.
    assert_eq!(whats(&steps(&has, &wanted)), ["address"]);
    wanted.remove(2);
    assert_eq!(whats(&steps(&has, &wanted))[0], "address, removed");
}

#[test]
fn what_the_guest_may_have_is_given_again_and_taken_away() {
    let mut given = pod()[..2].to_vec();
    doubt(&mut given, pod());
    let again = steps(&given, &pod());
    assert_eq!(again.len(), 5);
    // It had the route.
    let (has, complaints) = outcome(&given, pod(), &again, vec![refusal(3, EEXIST)]);
    assert_eq!((has.len(), complaints.len()), (5, 0));
    assert!(Difference::between(&has, &pod()).is_empty());
    assert_eq!(steps(&given, &[]).len(), 5);
    // Also what has an end, of which it may have nothing.
    let mut wanted = pod();
    wanted[2].renewed = Some(7);
    let mut given = wanted.clone();
    doubt(&mut given, wanted.clone());
    assert_eq!(steps(&given, &wanted).len(), 5);
    // As with a VRF.
    let vrf = [item("VRF", Kind::Made, 1)];
    let mut given = Vec::new();
    doubt(&mut given, vrf.to_vec());
    let again = steps(&given, &vrf);
    let (has, complaints) = outcome(&given, vrf.to_vec(), &again, vec![refusal(0, EEXIST)]);
    assert_eq!((has, complaints), (vrf.to_vec(), Vec::new()));
}

#[test]
fn what_has_an_end_is_given_anew_when_that_is_set_anew() {
    let mut wanted = pod();
    wanted[3].renewed = Some(7);
    let mut later = wanted.clone();
    later[3].add = vec![2];
    assert!(Difference::between(&wanted, &later).is_empty());
    later[3].renewed = Some(8);
    let renewed = steps(&wanted, &later);
    assert_eq!(renewed[0].effect, Effect::Change(3));
    let (has, _) = outcome(&wanted, later.clone(), &renewed, Vec::new());
    assert!(Difference::between(&has, &later).is_empty());
    // It may have ended in the guest, too, when the namespace has lost it.
    let without: Vec<Item> = [0, 1, 2, 4].map(|number| wanted[number].clone()).into();
    let lost = steps(&wanted, &without);
    assert_eq!(lost[0].effect, Effect::Remove);
    let gone = vec![refusal(0, libc::EADDRNOTAVAIL)];
    let (has, complaints) = outcome(&wanted, without.clone(), &lost, gone);
    assert_eq!((has, complaints), (without, Vec::new()));
}
