"""Copies that wait go first: where an instance does not fit, as few of them as will do, in the transaction that writes it."""

from collections.abc import Sequence

from lamella.control import capacity
from lamella.control.events import record
from lamella.control.shares import NOTHING, Share, counts, share_of
from lamella.control.storage.conditions import drop, of, put
from lamella.control.templates import pooling
from lamella.model.errors import LamellaError, NoRoom
from lamella.model.host import Host
from lamella.model.instance import Instance, InstanceSpec, Power
from lamella.model.resource import now
from lamella.model.template import Template
from lamella.store.store import Transaction

# The type of the condition that says why no copies are made to wait now.
WARM = "Warm"


def waits(instance: Instance) -> bool:
    """Whether *instance* is a copy that waits for its command, or is being made to."""
    return (
        instance.spec.power is Power.READY
        and instance.spec.template is not None
        and bool(instance.status.template)
        and instance.deleted_at is None
    )


def give_way(
    tx: Transaction, spec: InstanceSpec, hosts: Sequence[Host], had: Share = NOTHING, *, but: str = ""
) -> bool:
    """Have copies that wait on one of *hosts* go, so that there is room for *spec*; until now the instance *but* (an id) *had* its share.
    ``False`` when that is no use. One copy that waits never makes another go."""
    if spec.power is Power.READY and spec.template is not None:
        return False
    wanted = share_of(spec)
    instances: list[Instance] = tx.list("instance")
    waiting = {item.id: item for item in instances if waits(item) and counts(item)}
    chosen: list[str] | None = None
    for host in hosts:
        taken = capacity.taken(host, instances, but=but)
        theirs = {id: share_of(item.spec) for id, item in waiting.items() if item.status.host == host.id}

        def short(given: Share, host: Host = host, taken: Share = taken) -> bool:
            left = _less(taken, given)
            return capacity.shortage(host, left, wanted, had, pinned=spec.cpu_pin) is not None

        gone = pooling.giving_way(theirs, short)
        if gone is not None and (chosen is None or len(gone) < len(chosen)):
            chosen = gone
    for id in chosen or []:
        send_away(tx, waiting[id], "an instance needs the room that it takes")
    return bool(chosen)


def send_away(tx: Transaction, waiting: Instance, why: str) -> None:
    """Have a copy that waits removed."""
    if waiting.deleted_at is None:
        waiting.deleted_at = now()
        record(tx, waiting, "instance.gave-way", f"{waiting.name}, which waited for a command, goes: {why}")
        tx.update(waiting)


def hold_back(tx: Transaction, id: str, why: LamellaError) -> None:
    """Make no copies of the template *id* wait for a while, and say why."""
    template: Template | None = tx.by_id(id)
    if template is None:
        return
    condition = of(why, WARM)
    template.status.conditions = put(drop(template.status.conditions, WARM), condition)
    tx.update(template)


def give_back(tx: Transaction, waiting: Instance, why: str) -> None:
    """The host of *waiting* is short of memory: it goes, and no other is made for a while."""
    if waits(waiting):
        hold_back(tx, waiting.status.template, NoRoom(why))
        send_away(tx, waiting, why)


def _less(share: Share, given: Share) -> Share:
    return Share(**{field: getattr(share, field) - getattr(given, field) for field in Share.__struct_fields__})
