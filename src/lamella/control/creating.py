"""A new instance from what was asked for: found, placed, admitted and written with all that it owns, in one transaction."""

from collections.abc import Sequence
from typing import Any

import msgspec

from lamella.control import huge_pages
from lamella.control.admission import Taken, admit, check_spec
from lamella.control.capacity import said
from lamella.control.changing import drive_image, networks_of
from lamella.control.fitting import normalise
from lamella.control.handing_out import shortages
from lamella.control.inserting import insert_admitted
from lamella.control.lookup import find_image, unused_name
from lamella.control.network.firewalls import firewalls_of
from lamella.control.placement import Placement, place
from lamella.control.shares import share_of
from lamella.control.storage.attaching import Named, able_hosts, resolve
from lamella.control.templates.giving_way import give_way
from lamella.control.templates.taking import check_not_by_hand
from lamella.model.errors import Invalid, NoRoom
from lamella.model.host import Host
from lamella.model.instance import Instance, InstanceSpec
from lamella.model.resource import Labels, Resource
from lamella.store.store import Transaction


def check_asked(spec: InstanceSpec) -> None:
    """What can be said of *spec* before anything is looked up; a copy's is checked when its template is known.

    :raise Invalid: when it contradicts itself, or there is nothing to run. :raise Unsupported: when its level has no use for a field.
    """
    check_not_by_hand(spec)
    if spec.template is None:
        check_image_named(spec)
        check_spec(spec)


def check_image_named(spec: InstanceSpec) -> None:
    """:raise Invalid: when there is no image to run."""
    if not spec.image:
        raise Invalid("there is no image to run", hint="name one, or a template", field="spec.image")


def insert_new(
    tx: Transaction, project: str, name: str | None, labels: Labels, asked: InstanceSpec, *, seed: str, host: str = ""
) -> Instance:
    """Insert an instance called *name* (``None``: one is chosen) into *project*, on *host* (an id; empty: where there is room). *seed* as
    for :class:`~lamella.control.instances.Instances`.

    The caller records the event and the audit. A retried transaction calls it anew: *asked* stays as it is.

    :raise LamellaError: what is wrong with it, or that there is no room.
    """
    spec = msgspec.convert(msgspec.to_builtins(asked), InstanceSpec)
    normalise(spec)
    named = resolve(tx, project, spec)
    placement = _placement(tx, spec, named, host)
    networks = networks_of(tx, project, spec)
    admitted = admit(
        name=name or unused_name(tx, project),
        project=project,
        labels=labels,
        spec=spec,
        image=find_image(tx, project, spec.image),
        placement=placement,
        networks=networks,
        taken=Taken(
            addresses={network.id: tx.claims(f"address:{network.id}") for network in networks},
            id_ranges=tx.claims(f"ids:{placement.host.id}"),
        ),
        seed=seed,
        drives={drive.name: drive_image(tx, project, drive) for drive in spec.cdroms},
        firewalls=[firewalls_of(tx, project, nic.firewalls) for nic in spec.nics],
    )
    # An appliance may have sizes of its own.
    return insert_admitted(tx, admitted, had=share_of(asked), named=named)


def _placement(tx: Transaction, spec: InstanceSpec, named: Sequence[Named], only: str) -> Placement:
    load: dict[str, int] = {}
    hosts: list[Resource[Any, Any]] = able_hosts(tx.list("host"), named) if named else tx.list("host")
    hosts = [host for host in hosts if not only or host.id == only]
    if spec.huge_pages:
        hosts = huge_pages.with_room(spec, hosts, tx.list("instance"))
    if len(hosts) > 1:
        for instance in tx.list("instance"):
            load[instance.status.host] = load.get(instance.status.host, 0) + 1
    try:
        chosen = place(spec, hosts, load, shortages(tx, spec, hosts))
    except NoRoom:
        if not give_way(tx, spec, [host for host in hosts if _able(spec, host)]):
            raise
        chosen = place(spec, hosts, load, shortages(tx, spec, hosts))
    return msgspec.structs.replace(chosen, share=said(share_of(spec)))


def _able(spec: InstanceSpec, host: Host) -> bool:
    wanted = f"compute.{spec.isolation}"
    ready = host.status.phase == "ready" and host.deleted_at is None
    return ready and any(item.available for item in host.status.capabilities if item.name == wanted)
