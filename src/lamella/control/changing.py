"""The rows that a change of an instance's spec brings and drops, in the transaction that writes it."""

import msgspec

from lamella.control.devices import change_of, new_port, new_volume
from lamella.control.fitting import PLUGGABLE
from lamella.control.lookup import find_image
from lamella.control.network.balancing import holder_name
from lamella.control.network.firewalls import firewalls_of
from lamella.control.network.rates import change_rates
from lamella.control.pinning import settle_pins
from lamella.control.storage.attaching import attach, check_idle, resolve
from lamella.model.board import Cdrom
from lamella.model.errors import Conflict, NoRoom, NotFound, Unsupported
from lamella.model.image import ArtifactKind, Image
from lamella.model.instance import Instance, InstanceSpec, Phase
from lamella.model.network import Network, Port
from lamella.model.storage import VolumeForm
from lamella.store.store import Transaction


def networks_of(tx: Transaction, project: str, spec: InstanceSpec) -> list[Network]:
    """The networks of the NICs, in their order."""
    return [network_named(tx, project, nic.network) for nic in spec.nics]


def network_named(tx: Transaction, project: str, name: str, *, field: str = "spec.nics.network") -> Network:
    found = tx.get("network", project, name) or tx.get("network", "default", name)
    if found is None:
        raise NotFound(f"there is no network {name!r}", hint="lamella network ls lists them", field=field)
    if found.spec.external:
        raise Conflict(
            f"network {name} is outside: no instance is on it",
            hint="lamella address create --attach NAME leads an address of it to one",
            field=field,
        )
    return found


def drive_image(tx: Transaction, project: str, drive: Cdrom) -> Image:
    """:raise Unsupported: when what is called so is no CD."""
    image = find_image(tx, project, drive.image)
    if all(artifact.kind is not ArtifactKind.CDROM for artifact in image.status.artifacts):
        raise Unsupported(
            f"image {image.name} is no CD",
            hint="import one: lamella image import FILE.iso --name NAME",
            field="spec.cdroms",
        )
    return image


def insert_port(tx: Transaction, port: Port) -> None:
    """Store *port* with the claims on all that it holds."""
    tx.insert(port)
    tx.claim(f"address:{port.spec.network}", port.spec.address.partition("/")[0], port.id)
    if port.spec.address6:
        tx.claim(f"address:{port.spec.network}", port.spec.address6.partition("/")[0], port.id)
    tx.claim(f"mac:{port.spec.network}", port.spec.mac, port.id)
    for item in port.spec.publish:
        if item.host_port:
            key = f"{item.host_address}:{item.host_port}/{item.protocol}"
            _claim_host_port(tx, port.status.host or "", key, port.id)


def _claim_host_port(tx: Transaction, host: str, key: str, port: str) -> None:
    """:raise Conflict: when another instance, or a balancer, publishes that port of the host; names it."""
    holder = tx.claims(f"published:{host}").get(key)
    taken = tx.by_id(holder) if holder is not None else None
    if holder is not None and taken is not None:
        name = holder_name(tx, holder)
        remove = "balancer rm" if taken.kind == "balancer" else "rm --force"
        raise Conflict(
            f"port {key} of the host is published by {name}",
            hint=f"publish another port, or: lamella {remove} {name}",
            field="spec.nics.publish",
        )
    tx.claim(f"published:{host}", key, port)


def change_devices(tx: Transaction, instance: Instance, wanted: InstanceSpec) -> None:
    """Rows for disks and NICs that come; those that go wait in ``status.retired`` until the host has let go of them."""
    status, change = instance.status, change_of(instance.spec, wanted)
    before = {disk.name: disk.size for disk in instance.spec.disks}
    for disk in wanted.disks:
        if disk.name in change.disks_added:
            volume = new_volume(instance, disk.name, VolumeForm.BLOCK, disk.size)
            # Its device's name may be that of one that is retired and still there.
            volume.name = volume.id.replace("_", "-")
            status.disks[disk.name] = tx.insert(volume).id
        elif before[disk.name] != disk.size:
            raise Unsupported(
                f"the size of disk {disk.name} cannot be changed", hint="attach another one", field="spec.disks"
            )
    for name in change.disks_dropped:
        status.retired.append(status.disks.pop(name))
    for nic in wanted.nics[1:]:
        if nic.name in change.nics_added:
            network = network_named(tx, instance.project, nic.network)
            taken = tx.claims(f"address:{network.id}")
            port = new_port(
                instance,
                nic.name or "",
                network,
                nic,
                taken,
                firewalls_of(tx, instance.project, nic.firewalls),
            )
            port.name = port.id.replace("_", "-")
            insert_port(tx, port)
            status.ports[nic.name or ""] = port.id
    for name in change.nics_dropped:
        status.retired.append(status.ports.pop(name))
    change_rates(tx, instance, wanted)
    status.cdroms = {drive.name: drive_image(tx, instance.project, drive).status.digest for drive in wanted.cdroms}


def undo(tx: Transaction, changed: Instance, before: Instance) -> None:
    """Take back a change that the host could not make, unless somebody has changed it again since."""
    instance: Instance | None = tx.by_id(changed.id)
    if instance is None or instance.deleted_at is not None or instance.generation != changed.generation:
        return
    status, old = instance.status, before.status
    brought = {*status.disks.values(), *status.ports.values()} - {*old.disks.values(), *old.ports.values()}
    if status.volumes != old.volumes:
        brought |= {*status.volumes.values()} - {*old.volumes.values()}
        attach(tx, instance, resolve(tx, instance.project, before.spec))
        instance = tx.update(instance)
        status = instance.status
    change_rates(tx, instance, before.spec)
    instance.spec = before.spec
    status.disks, status.ports, status.cdroms = old.disks, old.ports, old.cdroms
    # What was asked for and never came goes as what is taken out does.
    status.retired = [*old.retired, *sorted(brought)]
    try:
        settle_pins(tx, instance)
    except NoRoom:
        # Its cores are somebody else's by now: all but them is as it was.
        instance.spec = msgspec.structs.replace(before.spec, cpu_pin=False)
        settle_pins(tx, instance)
    tx.update(instance)


def check_volumes_idle(tx: Transaction, instance: Instance) -> None:
    """:raise Conflict: when something long goes on with a volume of *instance*."""
    status = instance.status
    for id in (status.volume, *status.disks.values(), *status.volumes.values()):
        volume = tx.by_id(id) if id else None
        if volume is not None:
            check_idle(tx, volume)


def check_volumes_at_rest(instance: Instance) -> None:
    """:raise Conflict: when volumes of *instance* stay as they are while it runs."""
    level, phase = instance.spec.isolation, instance.status.phase
    if level not in PLUGGABLE and phase not in (Phase.STOPPED, Phase.FAILED, Phase.PENDING):
        raise Conflict(
            f"volumes of {instance.name} cannot be changed while it is {phase}: a {level} keeps those that it began with",
            hint=f"lamella stop {instance.name}, change them, and start it again",
            field="spec.volumes",
        )
