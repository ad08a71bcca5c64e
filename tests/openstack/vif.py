"""What kuryr-daemon does with a pod's interface, by kuryr-kubernetes' own binding code.

    vif.py connect|disconnect NETNS KIND:LINK:NUMBER...

Each VIF is an interface of the pod: the first eth0, and so on. KIND is its class, LINK the node's
bridge or trunk, NUMBER tells the addresses: those of a Neutron port with a subnet of each family.
Plugging is left out: it is a virtual switch's.
"""

import sys
import uuid

import os_vif
from os_vif import objects as osv

os_vif.plug = os_vif.unplug = lambda vif, instance_info: None
os_vif.initialize()

from kuryr_kubernetes import config  # noqa: E402
from kuryr_kubernetes.cni.binding import base  # noqa: E402
from kuryr_kubernetes.objects import vif as kuryr  # noqa: E402

VLAN_ID = 42


def subnet(cidr, gateway, address, routes=()):
    return osv.subnet.Subnet(
        cidr=cidr,
        gateway=gateway,
        dns=[],
        ips=osv.fixed_ip.FixedIPList(objects=[osv.fixed_ip.FixedIP(address=address)]),
        routes=osv.route.RouteList(
            objects=[osv.route.Route(cidr=to, gateway=via) for to, via in routes]
        ),
    )


def port(kind, link, number):
    of_kind = {
        "VIFBridge": (osv.vif.VIFBridge, {"bridge_name": link}),
        "VIFVlanNested": (kuryr.VIFVlanNested, {"vlan_id": VLAN_ID}),
        "VIFMacvlanNested": (kuryr.VIFMacvlanNested, {}),
    }
    make, rest = of_kind[kind]
    v4, v6 = f"10.{number}.0", f"fd{number}:"
    subnets = [
        subnet(f"{v4}.0/24", f"{v4}.1", f"{v4}.2", [(f"172.{number}.0.0/16", f"{v4}.9")]),
        subnet(f"{v6}:/64", f"{v6}:1", f"{v6}:2"),
    ]
    network = osv.network.Network(
        id=str(uuid.uuid4()), mtu=1442, subnets=osv.subnet.SubnetList(objects=subnets)
    )
    return make(
        id=str(uuid.uuid4()),
        vif_name=f"tap{number}",
        address=f"fa:16:3e:00:00:{number}",
        network=network,
        active=True,
        plugin="noop",
        **rest,
    )


def main(verb, netns, *vifs):
    call = {"connect": base.connect, "disconnect": base.disconnect}[verb]
    for at, vif in enumerate(vifs):
        kind, link, number = vif.split(":")
        config.CONF.set_override("link_iface", link, group="binding")
        # Only the first interface of a pod has its default route.
        call(
            port(kind, link, number),
            None,
            f"eth{at}",
            netns,
            is_default_gateway=at == 0,
            container_id="pod",
        )


main(*sys.argv[1:])
