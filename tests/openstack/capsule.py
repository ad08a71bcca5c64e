"""What zun-compute does with a capsule, by Zun's own CRI driver.

    capsule.py IMAGE STATE

Creates a capsule and prints its pod's id and its containers'; deletes it when a line comes in.
The init container and the first container have a local volume, one file; Zun keeps it in the
directory STATE. Left out are Neutron, the data base, and the registry, which the node has not.
"""

import base64
import sys
import uuid
from unittest import mock

import zun.conf
from zun import objects
from zun.common import context
from zun.container.cri.driver import CriDriver


def container(kind, name, image, command, **rest):
    return kind(
        uuid=str(uuid.uuid4()),
        name=name,
        image=image,
        command=["sh", "-c", command],
        environment={"NAME": name},
        workdir="/tmp",
        labels={"capsule": "one"},
        privileged=False,
        tty=False,
        interactive=False,
        **rest,
    )


def main(image, state):
    zun.conf.CONF([], project="zun", default_config_files=[])
    zun.conf.CONF.set_override("container_runtime", "rust")
    zun.conf.CONF.set_override("volume_dir", state, group="volume")
    admin = context.get_admin_context()
    init, app = objects.CapsuleInitContainer, objects.CapsuleContainer
    first = container(init, "init", image, "grep local /volume", cpu=None, memory=None)
    # The least memory that Zun gives, and more than the machine had at its start.
    second = container(app, "small", image, "sleep 1000000", cpu=1.0, memory="4")
    third = container(app, "large", image, "sleep 1000000", cpu=2.0, memory="512")
    capsule = objects.Capsule(
        uuid=str(uuid.uuid4()),
        runtime=None,
        init_containers=[first],
        containers=[second, third],
        addresses=None,
    )
    volume = objects.volume.Volume(uuid=str(uuid.uuid4()))
    mapping = objects.VolumeMapping(
        volume=volume,
        volume_provider="local",
        container_path="/volume",
        contents=base64.b64encode(b"a local volume\n").decode(),
    )
    volumes = {first.uuid: [mapping], second.uuid: [mapping]}

    driver = CriDriver()
    driver._write_cni_metadata = driver._pull_image = mock.Mock()
    with mock.patch.object(objects.container.ContainerBase, "save"):
        driver.attach_volume(admin, mapping)
        driver.create_capsule(admin, capsule, image, [], volumes)
        ids = [each.container_id for each in (capsule, first, second, third)]
        print("created", *ids, capsule.status, flush=True)
        sys.stdin.readline()
        driver.delete_capsule(admin, capsule, force=False)
        driver.detach_volume(admin, mapping)


main(*sys.argv[1:])
