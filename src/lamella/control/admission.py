"""From a request to everything that a new instance is: pure, so that it can be shown before it happens.

``admit`` needs only values: the image, the hosts, the network and what is taken. The caller writes what it returns in one
transaction.
"""

from collections.abc import Callable, Collection, Container, Mapping, Sequence

import msgspec

from lamella.control.addressing import free_id_range
from lamella.control.devices import new_port, new_volume
from lamella.control.fitting import COMMANDS, check_image, check_level, with_defaults
from lamella.control.network.dual_stack import canonical
from lamella.control.placement import Placement
from lamella.control.shares import check_shares
from lamella.model.board import Disk
from lamella.model.command import whole_command
from lamella.model.errors import Invalid, Unsupported
from lamella.model.image import SCRATCH, ArtifactKind, Image
from lamella.model.instance import (
    MACHINES,
    Decision,
    Instance,
    InstanceSpec,
    InstanceStatus,
    Isolation,
    Power,
    Publish,
    RestartMode,
)
from lamella.model.network import Network, Port
from lamella.model.resource import Labels, new_resource, now
from lamella.model.signals import signal_number
from lamella.model.storage import Volume, VolumeForm

Decide = Callable[[str, str, str], None]

# What an instance of each level writes to. A unikernel has a disk only when one is asked for.
FORMS = {
    Isolation.CONTAINER: VolumeForm.FILESYSTEM,
    Isolation.WASM: None,
    Isolation.MICROVM: VolumeForm.BLOCK,
    Isolation.UNIKERNEL: None,
    Isolation.VM: VolumeForm.BLOCK,
    Isolation.CONFIDENTIAL: VolumeForm.BLOCK,
}


class Admitted(msgspec.Struct, kw_only=True):
    """The instance with all that it owns, not yet stored. ``disks`` and ``ports`` are those beside the first, by device name."""

    instance: Instance
    volume: Volume | None
    port: Port | None
    disks: dict[str, Volume] = {}
    ports: dict[str, Port] = {}


class Taken(msgspec.Struct, kw_only=True):
    """What others hold: addresses by network id (without prefix length), first ids of the host's ranges."""

    addresses: Mapping[str, Collection[str]]
    id_ranges: Container[str]


def check_spec(spec: InstanceSpec) -> None:
    """What no type can say.

    :raise Invalid: when fields contradict each other.
    :raise Unsupported: when the level has no use for one.
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
    if spec.isolation not in MACHINES or spec.memory is not None:
        check_shares(spec)  # a machine's image may have a size of its own
    check_level(spec)


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

    :raise Invalid: when neither the request nor the image names a program, at a level that has no other way to know.
    """
    whole = whole_command(spec, image.status.config)
    if spec.isolation not in COMMANDS:
        return whole
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
    networks: Sequence[Network],
    taken: Taken,
    seed: str,
    drives: Mapping[str, Image] | None = None,
    firewalls: Sequence[Sequence[str]] = (),
) -> Admitted:
    """Everything that this instance will be, with the reasons. *networks* are those of its NICs in their order, *drives* the images
    of its CD drives by device name, *firewalls* the ids of those of each NIC.

    :raise Invalid: when the spec contradicts itself or the image.
    :raise NoRoom: when addresses or id ranges are used up.
    :raise Unsupported: when the host is of another architecture than the image, or a bound on the disk would not be kept.
    """
    check_spec(spec)
    check_image(spec, image, scratch=image.status.digest == SCRATCH)
    command = command_of(spec, image)
    host = placement.host
    made_for = image.status.architecture if spec.isolation is not Isolation.WASM else ""
    if made_for and host.status.architecture and made_for != host.status.architecture:
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
    if placement.share:
        decide(
            "share of the host", placement.share, "it has room for that, less what others were promised and its reserve"
        )
    if command:
        decide("command", " ".join(command)[:200], _command_reason(spec))
    decisions += with_defaults(spec, image.status.appliance)
    check_shares(spec)

    status = InstanceStatus(host=host.id, image_digest=image.status.digest, decisions=decisions)
    instance: Instance = new_resource("instance", name, spec, status, project=project, labels=labels)
    spec.epoch = 1 if spec.power is not Power.STOPPED else 0
    spec.attach_epoch = min(spec.attach_epoch, 1)

    made = Admitted(instance=instance, volume=None, port=None)
    _add_disks(made, image, decide)
    status.cdroms = {name: drive.status.digest for name, drive in (drives or {}).items()}
    status.id_base = free_id_range(taken.id_ranges, seed=seed)
    decide("host ids", f"{status.id_base}+65536", "a range that no other instance of this host has")
    _add_ports(made, networks, taken, firewalls or [()] * len(networks), decide)
    return made


def _add_disks(made: Admitted, image: Image, decide: Decide) -> None:
    instance, spec, status = made.instance, made.instance.spec, made.instance.status
    form = FORMS[spec.isolation]
    if spec.isolation is Isolation.UNIKERNEL and spec.disk is not None:
        form = VolumeForm.BLOCK
    if form is None:
        decide("disk", "none", f"a {spec.isolation} writes to none")
    else:
        made.volume = new_volume(instance, "root", form, spec.disk or 0)
        status.volume = made.volume.id
        decide("disk", made.volume.name, f"a {form} volume of pool default: what {spec.isolation} writes to")
    if spec.isolation in MACHINES:
        # An appliance may come with several disks: the first is the root, the others are named by their number.
        further = [artifact for artifact in image.status.artifacts if artifact.kind is ArtifactKind.DISK][1:]
        spec.disks = [
            *(Disk(name=f"image-{number}", size=artifact.size) for number, artifact in enumerate(further, 1)),
            *spec.disks,
        ]
    for disk in spec.disks:
        made.disks[disk.name] = new_volume(instance, disk.name, VolumeForm.BLOCK, disk.size)
    status.disks = {name: volume.id for name, volume in made.disks.items()}


def _add_ports(
    made: Admitted, networks: Sequence[Network], taken: Taken, firewalls: Sequence[Sequence[str]], decide: Decide
) -> None:
    instance, spec, status = made.instance, made.instance.spec, made.instance.status
    ours: set[str] = set()
    # What one NIC asks for by name, no other is given by chance.
    named = {asked for nic in spec.nics for asked in (nic.address, canonical(nic.address6)) if asked}
    for number, (nic, network, guards) in enumerate(zip(spec.nics, networks, firewalls, strict=True)):
        others = taken.addresses.get(network.id, frozenset[str]())
        # What it asks for itself is not in its own way.
        mine = ours | (named - {nic.address, canonical(nic.address6)})
        port = new_port(instance, str(number), network, nic, {*others, *mine} if mine else others, guards)
        ours |= {address.partition("/")[0] for address in (port.spec.address, port.spec.address6) if address}
        decide("address", port.spec.address, f"{'asked for' if nic.address else 'free'} in network {network.name}")
        if nic.firewalls:
            decide("firewalls", ", ".join(nic.firewalls), "they were asked for: nothing else may come in")
        elif guards:
            decide("firewalls", f"{len(guards)}, the project's default", "none was named: nothing else may come in")
        if number == 0:
            made.port = port
            status.port, status.mac = port.id, port.spec.mac
            status.address = port.spec.address.partition("/")[0]
        else:
            made.ports[nic.name or ""] = port
    status.ports = {name: port.id for name, port in made.ports.items()}
    if not spec.nics:
        decide("network", "none", "no network was asked for")


def _command_reason(spec: InstanceSpec) -> str:
    if spec.entrypoint is not None:
        return "the request's entrypoint replaces the image's"
    return "the request's command follows the image's entrypoint" if spec.command is not None else "the image says so"
