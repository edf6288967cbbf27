"""Finding the pool, volume or snapshot that a request names, or saying how to get it."""

from typing import Any

from lamella.model.errors import NotFound
from lamella.model.storage import Pool, Snapshot, Volume
from lamella.store.store import Transaction


def find_pool(tx: Transaction, name: str, *, field: str = "") -> Pool:
    """By name or id.

    :raise NotFound: with the command that lists them.
    """
    hint = f"lamella pool ls lists them; make one: lamella pool create {name} --driver directory --path DIR"
    return _find(tx, "pool", "default", name, hint, field)


def find_volume(tx: Transaction, project: str, name: str, *, field: str = "") -> Volume:
    """By name or id.

    :raise NotFound: with the command that makes one.
    """
    return _find(tx, "volume", project, name, f"make it: lamella volume create {name} --size 10GiB", field)


def find_snapshot(tx: Transaction, project: str, name: str, *, field: str = "") -> Snapshot:
    """By name or id.

    :raise NotFound: with the command that makes one.
    """
    of, _, own = name.partition("@")
    hint = f"take it: lamella snapshot create {of} {own}" if own else "lamella snapshot ls lists them"
    return _find(tx, "snapshot", project, name, hint, field)


def _find(tx: Transaction, kind: str, project: str, name: str, hint: str, field: str) -> Any:
    found = tx.get(kind, project, name)
    if found is None:
        by_id = tx.by_id(name)
        found = by_id if by_id is not None and by_id.kind == kind and by_id.project == project else None
    if found is None:
        where = "" if kind == "pool" else f" in project {project}"
        raise NotFound(f"no {kind} is called {name!r}{where}", hint=hint, field=field)
    return found


def snapshots_of(tx: Transaction, volume: Volume) -> list[Snapshot]:
    """All snapshots that hold something of *volume*, those of whole instances among them."""
    return [item for item in tx.list("snapshot") if volume.id in held(item)]


def held(snapshot: Snapshot) -> list[str]:
    """Ids of the volumes that *snapshot* is of."""
    spec = snapshot.spec
    return spec.volumes or ([spec.volume] if spec.volume is not None else [])
