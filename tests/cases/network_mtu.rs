//! The greatest packet that passes whole is as long as the link's MTU: not a byte less, not one
//! more.

use std::process::Command;

use husk_tests::network::{Namespace, node, told};
use husk_tests::{Node, Runtime, process};

/// Asks for an echo with a packet of a length (with its IP header) that must not be cut to pieces
/// (IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: 2 is IP_PMTUDISC_DO; IP_RECVERR, IPV6_RECVERR; ip(7),
/// ipv6(7)), for each pair of arguments; says what became of each. For the node's perl: busybox' ping cannot ask so.
const ECHO: &str = r#"
    while (my ($to, $length) = splice @ARGV, 0, 2) {
        my $six = $to =~ /:/;
        socket(S, $six ? AF_INET6 : AF_INET, SOCK_DGRAM, $six ? 58 : 1) or die "socket: $!";
        setsockopt(S, $six ? 41 : 0, $six ? 23 : 10, pack("i", 2)) or die "no pieces: $!";
        setsockopt(S, $six ? 41 : 0, $six ? 25 : 11, pack("i", 1)) or die "errors: $!";
        setsockopt(S, SOL_SOCKET, SO_RCVTIMEO, pack("l!l!", 20, 0)) or die "a deadline: $!";
        connect(S, $six ? pack_sockaddr_in6(0, inet_pton(AF_INET6, $to)) : pack_sockaddr_in(0, inet_aton($to)))
            or die "$to: $!";
        my $echo = pack("CCnnn", $six ? 128 : 8, 0, 0, 0, 1) . "x" x ($length - ($six ? 48 : 28));
        my $answer = "";
        my $passed = defined send(S, $echo, 0) && defined recv(S, $answer, 65535, 0);
        my $whole = length $answer == length $echo ? "answered" : "cut off";
        print "$to $length ", $passed ? $whole : $!, "\n";
    }"#;

/// Expects that of packets to each address those of its MTU pass, and longer ones do not.
#[track_caller]
fn exactly(run: impl Fn(&str) -> String, limits: &[(&str, usize)]) {
    let mut arguments = String::new();
    let mut expected = String::new();
    for (address, mtu) in limits {
        let more = mtu + 1;
        arguments += &format!(" {address} {mtu} {address} {more}");
        expected += &format!("{address} {mtu} answered\n{address} {more} Message too long\n");
    }
    // Sockets for echos are for nobody, unless it is said who may.
    let may = "echo 0 0 >/proc/sys/net/ipv4/ping_group_range";
    let said = run(&format!("{may}; PERL -MSocket=:all -e '{ECHO}'{arguments}"));
    assert_eq!(said, expected);
}

#[test]
fn packets_that_must_stay_whole_pass_up_to_the_mtu_and_no_further() {
    let _node = Node::enter();
    let link = |name: &str, subnet: u8, mtu: usize| {
        format!(
            "ip link add mtu-far{subnet} mtu {mtu} type veth peer name {name} mtu {mtu} netns mtu
            ip addr add 10.77.{subnet}.1/24 dev mtu-far{subnet}
            ip addr add fd77:{subnet}::1/64 dev mtu-far{subnet} nodad
            n addr add 10.77.{subnet}.2/24 dev {name}
            n addr add fd77:{subnet}::2/64 dev {name} nodad
            ip link set mtu-far{subnet} up; n link set {name} up\n"
        )
    };
    let links = [("eth0", 0, 1450), ("jumbo", 1, 9000), ("least", 2, 1280)];
    let mut add: String = links
        .map(|(name, subnet, mtu)| link(name, subnet, mtu))
        .concat();
    add += "n route add default via 10.77.1.1; n route add default via fd77:1::1";
    let namespace = Namespace::new("mtu", &add);
    // Behind the node, where less passes than on the way to it.
    let far = "ip link add mtu-hop mtu 1400 type veth peer name eth0 mtu 1400 netns far
        ip addr add 10.78.0.1/24 dev mtu-hop; ip addr add fd78::1/64 dev mtu-hop nodad
        n addr add 10.78.0.2/24 dev eth0; n addr add fd78::2/64 dev eth0 nodad
        ip link set mtu-hop up; n link set eth0 up
        n route add default via 10.78.0.1; n route add default via fd78::1";
    let _far = Namespace::new("far", far);
    node("sysctl -q -w net.ipv6.conf.all.forwarding=1");
    let task = namespace.run_beside_the_nodes_programs(Runtime::Husk);
    let limits = |host: u8| {
        let limits = links.map(|(_, subnet, mtu)| {
            let version4 = format!("10.77.{subnet}.{host}");
            [(version4, mtu), (format!("fd77:{subnet}::{host}"), mtu)]
        });
        limits.concat()
    };
    fn borrowed(limits: &[(String, usize)]) -> Vec<(&str, usize)> {
        let limits = limits.iter();
        limits.map(|(address, mtu)| (&address[..], *mtu)).collect()
    }
    let guest = |script: &str| told(&task, &script.replace("PERL", "chroot /node /usr/bin/perl"));
    exactly(guest, &borrowed(&limits(1)));
    exactly(guest, &[("10.78.0.2", 1400), ("fd78::2", 1400)]);
    let from_node = |script: &str| {
        let mut sh = Command::new("sh");
        sh.args(["-c", &script.replace("PERL", "perl")]);
        process::run(sh).succeeded().text()
    };
    exactly(from_node, &borrowed(&limits(2)));
    task.destroy();
}
