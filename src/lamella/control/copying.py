"""An instance that begins as a copy: of the disks and the memory that a snapshot holds, as another machine.

It is admitted like any other: it has a name, a port, addresses and host ids of its own. What was frozen cannot change: the hardware
is its origin's.
"""

import msgspec

from lamella.control import huge_pages
from lamella.control.admission import Taken, admit
from lamella.control.changing import networks_of
from lamella.control.fitting import check_keeps_memory, normalise
from lamella.control.inserting import insert_admitted
from lamella.control.lookup import find_image, need_project
from lamella.control.network.firewalls import firewalls_of
from lamella.control.placement import place
from lamella.control.storage.holding import check_stays
from lamella.control.storage.lookup import held
from lamella.model.errors import Conflict, NotFound, Unsupported
from lamella.model.host import Host
from lamella.model.image import Image
from lamella.model.instance import Beginning, Decision, Instance, InstanceSpec, Power
from lamella.model.origin import Origin
from lamella.model.resource import Labels, now
from lamella.model.storage import Snapshot, StoragePhase, Volume
from lamella.store.store import Transaction

# What the memory knows of the machine that it is of.
HARDWARE = ("isolation", "cpu", "memory", "disk", "huge_pages", "board", "disks", "cdroms", "usb", "volumes")


def begin_as_copy(
    tx: Transaction,
    snapshot: Snapshot,
    name: str,
    *,
    seed: str,
    spec: InstanceSpec | None = None,
    labels: Labels | None = None,
    image: Image | None = None,
    template: str = "",
) -> Instance:
    """Insert an instance called *name* into the project of *snapshot*, which begins as a copy of it, on its host. *spec* is what it is to
    be: without one what its origin was (:func:`spec_of_copy`). *image* is the one that its origin was made from; without one it is looked
    up. *template* is the id of the template that it is a copy of. *seed* as for :class:`~lamella.control.instances.Instances`.

    The caller records the event and the audit. A retried transaction calls it anew: *spec* and *snapshot* stay as they are.

    :raise Conflict: when *snapshot* is not ready, or the name is taken. :raise NotFound: when its disk or its image is gone.
    :raise Unsupported: when it holds no memory, its origin cannot be copied, or *spec* asks for other hardware.
    :raise NoRoom: when its host has none. :raise Unavailable: when its host is away.
    """
    origin = origin_of(snapshot)
    check_copyable(origin.name, origin.spec)
    project = need_project(tx, snapshot.project).name
    wanted = _copied(spec) if spec is not None else spec_of_copy(origin)
    check_hardware(origin, wanted)
    normalise(wanted)
    disk = _disk(tx, snapshot)
    host: Host | None = tx.by_id(snapshot.status.host or "")
    placement = place(wanted, [] if host is None else [host], {})
    if wanted.huge_pages:
        huge_pages.with_room(wanted, [placement.host], tx.list("instance"))
    networks = networks_of(tx, project, wanted)
    admitted = admit(
        name=name,
        project=project,
        labels=labels or {},
        spec=wanted,
        image=image or find_image(tx, project, origin.image_digest),
        placement=msgspec.structs.replace(placement, because=f"the memory of snapshot {snapshot.name} lies there"),
        networks=networks,
        taken=Taken(
            addresses={network.id: tx.claims(f"address:{network.id}") for network in networks},
            id_ranges=tx.claims(f"ids:{placement.host.id}"),
        ),
        seed=seed,
        firewalls=[firewalls_of(tx, project, nic.firewalls) for nic in wanted.nics],
    )
    _stand_on(admitted.volume, disk, snapshot)
    status = admitted.instance.status
    status.board, status.template = origin.board, template
    status.beginning = Beginning(snapshot=snapshot.id, epoch=1, fresh=True)
    status.decisions.append(
        Decision(
            at=now(),
            what="beginning",
            chosen=f"the memory of {origin.name}, as snapshot {snapshot.name} has it",
            because="it is a copy: it goes on where that was, under a name and with addresses of its own",
        )
    )
    return insert_admitted(tx, admitted)


def origin_of(snapshot: Snapshot) -> Origin:
    """The machine that *snapshot* holds the memory of.

    :raise Conflict: when it is not ready. :raise Unsupported: when it holds no memory.
    """
    origin = snapshot.status.origin
    if not snapshot.spec.memory or origin is None:
        raise Unsupported(
            f"snapshot {snapshot.name} holds disks alone", hint="take one with --memory while the instance runs"
        )
    if snapshot.status.phase is not StoragePhase.READY:
        raise Conflict(f"snapshot {snapshot.name} is {snapshot.status.phase}", hint="wait until it is ready")
    return origin


def of_instance(instance: Instance) -> Origin:
    """What *instance* is now, to be written down with its memory."""
    status = instance.status
    return Origin(
        id=instance.id,
        name=instance.name,
        spec=_copied(instance.spec),
        image_digest=status.image_digest,
        board=status.board,
        cpu=status.launched_cpu,
        memory=status.launched_memory,
    )


def check_copyable(name: str, spec: InstanceSpec) -> None:
    """:raise Unsupported: when what *name* has beside its root disk and its first NIC is in the way of a copy."""
    check_keeps_memory(spec, "copied while it runs")
    having = {
        "volumes attached": spec.volumes,
        "further disks": spec.disks,
        "CD drives": spec.cdroms,
        "USB devices": spec.usb,
        "more than one NIC": spec.nics[1:],
    }
    for what, there in having.items():
        if there:
            raise Unsupported(
                f"{name} cannot be copied while it runs: it has {what}",
                hint="a copy has a root disk and one NIC",
            )


def spec_of_copy(origin: Origin) -> InstanceSpec:
    """What *origin* was, without what can be one machine's alone: its host name, its addresses, and the host's ports that led to it."""
    spec = _copied(origin.spec)
    spec.hostname, spec.power, spec.attach_epoch, spec.grace = None, Power.RUNNING, 0, None
    spec.template, spec.cold = None, False
    for nic in spec.nics:
        nic.address, nic.address6 = "", ""
        nic.publish = [item for item in nic.publish if not item.host_port]
    # It was launched with at least what its limits allow now.
    spec.cpu = max(spec.cpu, origin.cpu or 0) if spec.cpu is not None else None
    spec.memory = max(spec.memory, origin.memory or 0) if spec.memory is not None else None
    return spec


def check_hardware(origin: Origin, wanted: InstanceSpec) -> None:
    """:raise Unsupported: when *wanted* is other hardware than *origin* was launched as."""
    had = spec_of_copy(origin)
    for field in HARDWARE:
        if getattr(wanted, field) != getattr(had, field):
            raise Unsupported(
                f"a copy of {origin.name} has its hardware: spec.{field} cannot be another one",
                hint="leave it out, or run one that begins anew",
                field=f"spec.{field}",
            )
    if len(wanted.nics) != len(had.nics):
        raise Unsupported(
            f"a copy of {origin.name} has as many NICs as it: {len(had.nics)}", hint="leave them out", field="spec.nics"
        )


def _disk(tx: Transaction, snapshot: Snapshot) -> Volume:
    ids = held(snapshot)
    if len(ids) != 1:
        raise Unsupported(
            f"snapshot {snapshot.name} is of {len(ids)} volumes", hint="a copy has a root disk and no other"
        )
    disk: Volume | None = tx.by_id(ids[0])
    if disk is None:
        raise NotFound(f"the disk of snapshot {snapshot.name} is gone")
    check_stays(tx, disk)
    return disk


def _stand_on(volume: Volume | None, disk: Volume, snapshot: Snapshot) -> None:
    assert volume is not None
    spec = volume.spec
    spec.pool, spec.form, spec.source = disk.spec.pool, disk.spec.form, snapshot.id
    spec.size = snapshot.status.sizes.get(disk.id) or disk.status.size or disk.spec.size


def _copied(spec: InstanceSpec) -> InstanceSpec:
    return msgspec.convert(msgspec.to_builtins(spec), InstanceSpec)
