"""What kuryr-libnetwork does with a container's port, by kuryr-lib's own binding drivers.

    ports.py bind|unbind DRIVER=LINK...

Each driver has a port of its own, in a network of its own: the first 10.80.0.0/24, and so on.
LINK is the node's trunk. Binding leaves the interface for the container on the node, where
libnetwork takes it from; its name is `t_c` and the driver's.
"""

import importlib
import sys

from kuryr.lib import config
from oslo_config import cfg

CONF = cfg.CONF
CONF.register_opts(config.core_opts)
CONF.register_group(config.binding_group)
CONF.register_opts(config.binding_opts, group=config.binding_group)
# Where the package's scripts for the host's end of a veth were installed.
CONF.set_override("bindir", f"{sys.prefix}/site/libexec/kuryr")

VLAN_ID = 43


def bind(driver, port, number):
    subnets = [
        {"id": "v4", "cidr": f"10.{number}.0.0/24"},
        {"id": "v6", "cidr": f"fd{number}::/64"},
    ]
    driver.port_bind(
        "endpoint", port, subnets, network={"mtu": 1442}, segmentation_id=VLAN_ID
    )


def unbind(driver, port, number):
    driver.port_unbind("endpoint", port)


def main(verb, *links):
    for number, (name, link) in enumerate((link.split("=") for link in links), 80):
        CONF.set_override("link_iface", link, group=config.binding_group)
        port = {
            "id": name,
            "network_id": "network",
            "tenant_id": "tenant",
            "mac_address": f"FA:16:3E:00:00:{number}",
            "fixed_ips": [
                {"subnet_id": "v4", "ip_address": f"10.{number}.0.2"},
                {"subnet_id": "v6", "ip_address": f"fd{number}::2"},
            ],
            "binding:vif_type": "tap",
        }
        driver = importlib.import_module(f"kuryr.lib.binding.drivers.{name}")
        {"bind": bind, "unbind": unbind}[verb](driver, port, number)


main(*sys.argv[1:])
