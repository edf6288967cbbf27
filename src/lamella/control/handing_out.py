"""Shares of hosts, handed out inside the transaction that writes what was asked: nobody is promised what another was just promised."""

from collections.abc import Sequence

from lamella.control import capacity
from lamella.control.capacity import Shortage
from lamella.control.pinning import find_cores
from lamella.control.shares import NOTHING, Share, counts, share_of
from lamella.control.templates.giving_way import give_way
from lamella.model.contract import Line
from lamella.model.errors import LamellaError, NoRoom
from lamella.model.host import Host
from lamella.model.instance import Instance, InstanceSpec
from lamella.store.store import Transaction


def shortages(tx: Transaction, spec: InstanceSpec, hosts: Sequence[Host]) -> dict[str, Shortage]:
    """Those of *hosts* that have no room for *spec*, by id."""
    wanted = share_of(spec)
    if wanted == NOTHING:
        return {}
    instances: list[Instance] = tx.list("instance")
    found: dict[str, Shortage] = {}
    for host in hosts:
        short = capacity.shortage(host, capacity.taken(host, instances), wanted, pinned=spec.cpu_pin)
        if short is None and spec.cpu_pin:
            try:
                own = len(find_cores(tx, host, spec).cpus)
                # Whole cores may be more than was asked for.
                short = capacity.shortage(host, capacity.taken(host, instances), share_of(spec, own), pinned=True)
            except LamellaError as error:
                short = Shortage(message=f"host {host.name}: {error.message}", hint=error.hint, field="spec.cpu_pin")
        if short is not None:
            found[host.id] = short
    return found


def held(instance: Instance) -> Share:
    """What the instance has of its host now."""
    return share_of(instance.spec, len(instance.status.cpus)) if counts(instance) else NOTHING


def check_room(tx: Transaction, instance: Instance, had: Share) -> None:
    """That the host has room for *instance* as it is asked for now; until now it *had* its share. Copies that wait for a command give way.

    :raise NoRoom: when it has not.
    """
    wanted = held(instance)
    grows = any(getattr(wanted, field) > getattr(had, field) for field in Share.__struct_fields__)
    host: Host | None = tx.by_id(instance.status.host or "")
    if not grows or host is None:
        return
    try:
        capacity.check(host, tx.list("instance"), instance, had)
    except NoRoom:
        if not give_way(tx, instance.spec, [host], had, but=instance.id):
            raise
        capacity.check(host, tx.list("instance"), instance, had)


def promised_by_host(tx: Transaction, instance: Instance) -> list[Line]:
    """What the host of *instance* has promised to all that run there."""
    host: Host | None = tx.by_id(instance.status.host or "")
    return [] if host is None else capacity.lines(host, tx.list("instance"))
