"""Disks and NICs of an instance beside the first: the rows they are, and what a changed spec adds and takes away. Pure."""

import zlib
from collections.abc import Container, Sequence
from ipaddress import IPv4Network

import msgspec

from lamella.control.addressing import free_address, mac_of, static_address
from lamella.control.network.dual_stack import address6
from lamella.model.instance import Instance, InstanceSpec, Nic
from lamella.model.network import Network, Port, PortSpec, PortStatus
from lamella.model.resource import new_resource
from lamella.model.storage import Volume, VolumeForm, VolumeSpec, VolumeStatus


class DeviceChange(msgspec.Struct, kw_only=True, frozen=True):
    """Names of disks and NICs that a new spec brings and drops."""

    disks_added: frozenset[str]
    disks_dropped: frozenset[str]
    nics_added: frozenset[str]
    nics_dropped: frozenset[str]


def new_volume(instance: Instance, name: str, form: VolumeForm, size: int) -> Volume:
    """A volume of pool ``default`` that goes with *instance*; *name* is its device's."""
    return new_resource(
        "volume",
        f"{instance.id.replace('_', '-')}-{name}",
        VolumeSpec(form=form, size=size, owner=instance.id),
        VolumeStatus(host=instance.status.host),
        project=instance.project,
    )


def new_port(
    instance: Instance, name: str, network: Network, nic: Nic, taken: Container[str], firewalls: Sequence[str] = ()
) -> Port:
    """A place on *network* for *instance*, with the addresses that *nic* asks for, or such as are not *taken*. *firewalls* are ids.

    :raise NoRoom: when there is none. :raise Invalid: when the asked one is no instance's. :raise Conflict: when it is taken.
    """
    port: Port = new_resource(
        "port",
        f"{instance.id.replace('_', '-')}-{name}",
        PortSpec(
            network=network.id,
            address="",
            mac="",
            owner=instance.id,
            publish=nic.publish,
            firewalls=list(firewalls),
            rate_in=nic.rate_in,
            rate_out=nic.rate_out,
        ),
        PortStatus(host=instance.status.host),
        project=instance.project,
    )
    subnet = IPv4Network(network.spec.subnet)
    if nic.address:
        port.spec.address = str(static_address(subnet, nic.address, taken))
    else:
        # A just-released address is not the next one given: neighbours may still remember its MAC.
        near = zlib.crc32(f"{instance.id}{'' if name == '0' else name}".encode())
        port.spec.address = str(free_address(subnet, taken, near=near))
    port.spec.address6 = address6(network, nic, port.spec.address, taken, instance.spec.isolation)
    port.spec.mac = mac_of(port.id)
    return port


def change_of(before: InstanceSpec, after: InstanceSpec) -> DeviceChange:
    """What *after* has of disks and further NICs that *before* has not, and the other way round."""
    disks = {disk.name for disk in before.disks}, {disk.name for disk in after.disks}
    nics = {nic.name or "" for nic in before.nics[1:]}, {nic.name or "" for nic in after.nics[1:]}
    return DeviceChange(
        disks_added=frozenset(disks[1] - disks[0]),
        disks_dropped=frozenset(disks[0] - disks[1]),
        nics_added=frozenset(nics[1] - nics[0]),
        nics_dropped=frozenset(nics[0] - nics[1]),
    )
