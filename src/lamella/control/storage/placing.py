"""Which host makes a new volume, and which is asked about one that there is."""

from collections.abc import Sequence

from lamella.model.errors import Unavailable
from lamella.model.host import Host
from lamella.model.storage import Feature, Pool, Snapshot, Volume
from lamella.store.store import Transaction


def host_for(pool: Pool, hosts: Sequence[Host]) -> Host:
    """The ready host with the most room in *pool*.

    :raise Unavailable: when none that is there has it open.
    """
    able = [host for host in hosts if host.status.phase == "ready" and pool.name in host.status.pools]
    if not able:
        raise Unavailable(
            f"pool {pool.name} is open on no host that is there", hint="lamella host ls, and lamella pool show"
        )
    return min(able, key=lambda host: (-host.status.pools[pool.name].free, host.id))


def host_of(tx: Transaction, volume: Volume) -> str | None:
    """The id of the host that is asked about *volume*: in a pool that several reach the one where an instance has it, else the one that
    made it."""
    return _holder(tx, volume) or volume.status.host


def host_of_snapshot(tx: Transaction, snapshot: Snapshot, volumes: Sequence[Volume]) -> str | None:
    """The same of *snapshot*, which is of *volumes*: whoever has them open takes it, merges it and goes back to it."""
    holders = (_holder(tx, volume) for volume in volumes)
    return next((host for host in holders if host is not None), snapshot.status.host)


def _holder(tx: Transaction, volume: Volume) -> str | None:
    pool: Pool | None = tx.get("pool", "default", volume.spec.pool)
    if pool is None or Feature.SHARED not in pool.status.features:
        return None
    hosts = (instance.status.host for id in volume.status.attached if (instance := tx.by_id(id)) is not None)
    return next((host for host in hosts if host), None)
