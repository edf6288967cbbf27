"""From a request to everything that a new instance is: pure, so that it can be shown before it happens.

``admit`` needs only values: the image, the hosts, the network and what is taken. The caller writes what it returns in one
transaction.
"""

import zlib
from collections.abc import Container
from ipaddress import IPv4Network

import msgspec

from lamella.control.addressing import free_address, free_id_range, mac_of
from lamella.control.placement import Placement
from lamella.model.command import whole_command
from lamella.model.errors import Invalid, Unsupported
from lamella.model.image import Image
from lamella.model.instance import (
    Decision,
    Instance,
    InstanceSpec,
    InstanceStatus,
    Isolation,
    Power,
    Publish,
    RestartMode,
)
from lamella.model.network import Network, Port, PortSpec, PortStatus
from lamella.model.resource import Labels, new_resource, now
from lamella.model.signals import signal_number
from lamella.model.storage import Volume, VolumeForm, VolumeSpec, VolumeStatus

FORMS = {Isolation.CONTAINER: VolumeForm.FILESYSTEM, Isolation.MICROVM: VolumeForm.BLOCK}


class Admitted(msgspec.Struct, kw_only=True):
    """The instance with all that it owns, not yet stored."""

    instance: Instance
    volume: Volume
    port: Port | None


class Taken(msgspec.Struct, kw_only=True):
    """What others hold: addresses of the network (without prefix length), first ids of the host's ranges."""

    addresses: Container[str]
    id_ranges: Container[str]


def check_spec(spec: InstanceSpec) -> None:
    """What no type can say.

    :raise Invalid: when fields contradict each other.
    """
    if spec.remove_on_exit and spec.restart.mode is not RestartMode.NO:
        raise Invalid(
            "an instance that is removed when it ends cannot be restarted",
            hint="leave out one of --rm and --restart",
            field="spec.restart",
        )
    if spec.command == [] and not spec.entrypoint:
        raise Invalid("the command is empty", hint="leave it out to use the image's", field="spec.command")
    if spec.command and not spec.entrypoint and spec.command[0] == "":
        raise Invalid("the command's first word is empty", hint="name a program", field="spec.command")
    if spec.working_directory is not None and not spec.working_directory.startswith("/"):
        raise Invalid(
            f"working directory {spec.working_directory!r} is not absolute",
            hint="begin it with /",
            field="spec.working_directory",
        )
    if spec.stop_signal is not None:
        try:
            signal_number(spec.stop_signal)
        except Invalid as error:
            raise Invalid(error.message, hint=error.hint, field="spec.stop_signal") from error
    for nic in spec.nics:
        check_publish(nic.publish)


def check_publish(publish: list[Publish]) -> None:
    """:raise Invalid: when a host port is asked for twice or an address is none."""
    seen: set[tuple[str, int, str]] = set()
    for item in publish:
        parts = item.host_address.split(".")
        if len(parts) != 4 or not all(part.isdecimal() and len(part) <= 3 and int(part) < 256 for part in parts):
            raise Invalid(
                f"{item.host_address!r} is not an IPv4 address",
                hint="write it like 127.0.0.1",
                field="spec.nics.publish.host_address",
            )
        key = (item.host_address, item.host_port, item.protocol)
        if item.host_port and key in seen:
            raise Invalid(
                f"host port {item.host_port}/{item.protocol} is published twice",
                hint="publish each host port once",
                field="spec.nics.publish",
            )
        seen.add(key)


def command_of(spec: InstanceSpec, image: Image) -> list[str]:
    """The whole argument vector: as docker joins entrypoint and command; an entrypoint of one's own drops the image's command.

    :raise Invalid: when neither the request nor the image names a program.
    """
    whole = whole_command(spec, image.status.config)
    if not whole or not whole[0]:
        raise Invalid(
            f"image {image.name} names no program to run",
            hint="say which: lamella run IMAGE -- PROGRAM …",
            field="spec.command",
        )
    return whole


def admit(
    *,
    name: str,
    project: str,
    labels: Labels,
    spec: InstanceSpec,
    image: Image,
    placement: Placement,
    network: Network | None,
    taken: Taken,
    seed: str,
) -> Admitted:
    """Everything that this instance will be, with the reasons.

    :raise Invalid: when the spec contradicts itself or the image.
    :raise NoRoom: when addresses or id ranges are used up.
    :raise Unsupported: when the host is of another architecture than the image, or a bound on the disk would not be kept.
    """
    check_spec(spec)
    command = command_of(spec, image)
    host = placement.host
    if image.status.architecture and host.status.architecture and image.status.architecture != host.status.architecture:
        raise Unsupported(
            f"image {image.name} is for {image.status.architecture}, host {host.name} is {host.status.architecture}",
            hint="pull it on a host of that architecture",
            field="spec.image",
        )
    at = now()
    decisions: list[Decision] = []

    def decide(what: str, chosen: str, because: str) -> None:
        decisions.append(Decision(at=at, what=what, chosen=chosen, because=because))

    decide("image", image.status.digest, f"{spec.image!r} means this digest in project {project} now")
    decide("isolation", spec.isolation, "it was asked for, or is the default: container")
    decide("host", host.name, placement.because)
    decide("command", " ".join(command)[:200], _command_reason(spec))

    status = InstanceStatus(host=host.id, image_digest=image.status.digest, decisions=decisions)
    instance: Instance = new_resource("instance", name, spec, status, project=project, labels=labels)
    spec.epoch = 1 if spec.power is not Power.STOPPED else 0
    spec.attach_epoch = min(spec.attach_epoch, 1)

    form = FORMS[spec.isolation]
    if form is VolumeForm.FILESYSTEM and spec.disk is not None:
        raise Unsupported(
            f"pool default cannot bound what a {spec.isolation} writes: its volumes are directories",
            hint="leave --disk out, or use --isolation microvm, whose disk has a size",
            field="spec.disk",
        )
    volume: Volume = new_resource(
        "volume",
        f"{instance.id.replace('_', '-')}-root",
        VolumeSpec(form=form, size=spec.disk or 0, owner=instance.id),
        VolumeStatus(host=host.id),
        project=project,
    )
    status.volume = volume.id
    decide("disk", volume.name, f"a {form} volume of pool default: what {spec.isolation} writes to")

    status.id_base = free_id_range(taken.id_ranges, seed=seed)
    decide("host ids", f"{status.id_base}+65536", "a range that no other instance of this host has")

    port: Port | None = None
    if spec.nics and network is not None:
        port = new_resource(
            "port",
            f"{instance.id.replace('_', '-')}-0",
            PortSpec(network=network.id, address="", mac="", owner=instance.id),
            PortStatus(host=host.id),
            project=project,
        )
        address = free_address(IPv4Network(network.spec.subnet), taken.addresses, near=_spread(instance.id))
        port.spec.address, port.spec.mac, port.spec.publish = str(address), mac_of(port.id), spec.nics[0].publish
        status.port, status.address, status.mac = port.id, str(address.ip), port.spec.mac
        decide("address", str(address), f"free in network {network.name}")
    else:
        decide("network", "none", "no network was asked for")
    return Admitted(instance=instance, volume=volume, port=port)


def _command_reason(spec: InstanceSpec) -> str:
    if spec.entrypoint is not None:
        return "the request's entrypoint replaces the image's"
    return "the request's command follows the image's entrypoint" if spec.command is not None else "the image says so"


def _spread(instance_id: str) -> int:
    # A just-released address is not the next one given: neighbours may still remember its MAC.
    return zlib.crc32(instance_id.encode())
