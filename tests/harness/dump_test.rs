use super::common;

/// As iproute2 tells it on the host.
const HOST: &str = r"
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN mode DEFAULT group default qlen 1000\    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00 promiscuity 0 allmulti 0 minmtu 0 maxmtu 0 addrgenmode eui64 numtxqueues 1 numrxqueues 1 
7: eth0@if4: <BROADCAST,MULTICAST,PROMISC,UP,LOWER_UP> mtu 1450 qdisc noqueue master red state UP mode DEFAULT group default qlen 500\    link/ether 02:00:00:00:00:07 brd ff:ff:ff:ff:ff:ff link-netnsid 0 promiscuity 1 allmulti 0 minmtu 68 maxmtu 65535 \    veth addrgenmode eui64 numtxqueues 2 \    alias the first
9: husk0: <BROADCAST,MULTICAST,UP> mtu 1450 qdisc clsact state UP mode DEFAULT group default qlen 1000\    link/ether 02:00:00:00:00:08 brd ff:ff:ff:ff:ff:ff
7: eth0    inet 10.77.0.3/24 brd 10.77.0.255 scope global noprefixroute eth0\       valid_lft forever preferred_lft forever
7: eth0    inet 10.77.0.2/24 scope global secondary eth0\       valid_lft forever preferred_lft forever
unicast 10.95.0.0/16 table main proto bird scope global \	nexthop via 10.77.0.1 dev eth0 weight 3 linkdown \	nexthop via 10.78.0.1 dev net1 weight 5 
unicast default via 10.77.0.1 dev eth0 table main proto boot scope global linkdown 
0:	from all lookup local proto kernel
600:	not from all fwmark 0x7/0xff lookup 100 proto unspec";

#[test]
fn what_the_host_alone_knows_is_left_out_and_nothing_else() {
    let expected = [
        "eth0 inet 10.77.0.3/24 brd 10.77.0.255 scope global eth0 valid_lft forever preferred_lft forever",
        "eth0 inet 10.77.0.2/24 scope global secondary eth0 valid_lft forever preferred_lft forever",
        "eth0 mtu 1450 ether 02:00:00:00:00:07 brd ff:ff:ff:ff:ff:ff master red mode DEFAULT group default qlen 500 alias the first <BROADCAST,MULTICAST,PROMISC,UP>",
        "lo mtu 65536 loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00 mode DEFAULT group default qlen 1000 <LOOPBACK,UP>",
        "0: from all lookup local proto kernel",
        "600: not from all fwmark 0x7/0xff lookup 100 proto unspec",
        "unicast 10.95.0.0/16 table main proto bird scope global nexthop via 10.77.0.1 dev eth0 weight 3 nexthop via 10.78.0.1 dev net1 weight 5",
        "unicast default via 10.77.0.1 dev eth0 table main proto boot scope global",
    ];
    assert_eq!(common(HOST), expected);
}

#[test]
fn the_order_of_rules_and_addresses_counts() {
    for lines in [
        ["5: from 10.0.0.1 lookup 100", "5: from 10.0.0.2 lookup 100"],
        ["7: eth0 inet 10.0.0.1/8", "7: eth0 inet 10.0.0.2/8"],
    ] {
        let turned = [lines[1], lines[0]];
        assert_ne!(common(&lines.join("\n")), common(&turned.join("\n")));
    }
}
