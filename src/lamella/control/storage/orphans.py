"""Orphans: what hosts found in their pools that no row names. Each is looked for again before it is removed.

A row is written before anything is made in a pool (an import's comes last: until then its operation names it). So what was in a pool
first, and is in no row and no operation read after that, is nobody's: what was made meanwhile is never taken for an orphan.
"""

from collections.abc import Iterable

from lamella.control.storage.attaching import BUSY
from lamella.model.host import Host
from lamella.model.operation import OperationPhase
from lamella.model.storage import Feature, Pool
from lamella.model.storage_report import Orphan
from lamella.store.store import Transaction


def sharers(hosts: Iterable[Host], pools: Iterable[Pool]) -> dict[str, set[str]]:
    """The pools that several hosts reach, by name, and the ids of the hosts that have each.

    Each of them keeps things there that it alone knows: what lies there is nobody's when all say so.
    """
    found = {pool.name: set[str]() for pool in pools if Feature.SHARED in pool.status.features}
    for host in hosts:
        for name, status in host.status.pools.items():
            if name in found or Feature.SHARED in status.features:
                found.setdefault(name, set()).add(host.id)
    return found


def is_nobodys(tx: Transaction, orphan: Orphan) -> bool:
    """Whether no row and no operation that goes on names *orphan*; read after a host has found it."""
    if tx.by_id(orphan.snapshot or orphan.volume) is not None:
        return False
    if orphan.snapshot and orphan.volume in tx.claims(BUSY):
        return False
    going = (item.spec.arguments for item in tx.list("operation") if item.status.phase is OperationPhase.RUNNING)
    named = orphan.snapshot, orphan.volume
    return not any(id and id in value for arguments in going for value in arguments.values() for id in named)
