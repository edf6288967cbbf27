"""Replications: what was asked stands in their rows; their hosts carry it out, and are looked at every so often.

Level-triggered: what a host has to be told is read from the row each time, so a daemon that ended in between goes on where it was.
"""

import asyncio
import logging
from contextlib import suppress

import msgspec

from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.attaching import check_usable
from lamella.control.storage.conditions import drop, of, put
from lamella.control.storage.lookup import find_pool, find_volume
from lamella.model.errors import Conflict, Internal, LamellaError, NotFound, Unavailable
from lamella.model.ids import check_name
from lamella.model.replication import (
    Replication,
    ReplicationPhase,
    ReplicationSpec,
    ReplicationStatus,
)
from lamella.model.replication_bodies import ReplicationCreate
from lamella.model.replication_requests import EndReplication, ObserveReplications, Promote, Replicate
from lamella.model.requests import Principal
from lamella.model.resource import Condition, new_resource, now
from lamella.model.storage import Feature, StoragePhase, Volume, VolumeForm, VolumeSpec, VolumeStatus
from lamella.store.store import Audit, Store, Transaction

log = logging.getLogger("lamella.control")

# Seconds between two looks at the hosts' replications.
EVERY = 2.0
# The condition of a volume that nobody may open: a replica, or what a replica replaced.
USABLE = "Usable"


class Replications:
    """Verbs on replications, and the task that keeps their rows true."""

    def __init__(self, store: Store, hosts: Hosts) -> None:
        self._store = store
        self._hosts = hosts
        self._task: asyncio.Task[None] | None = None
        self._turns: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="replications")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    # --- verbs

    async def create(self, who: Principal, project: str, body: ReplicationCreate) -> Replication:
        """:raise NotFound: when there is no such volume or pool. :raise Conflict: when it is replicated, or its host has no such pool."""

        def write(tx: Transaction) -> Replication:
            need_project(tx, project)
            volume = find_volume(tx, project, body.volume, field="volume")
            check_usable(tx, volume)
            pool = find_pool(tx, body.pool.removeprefix("pool:"), field="pool")
            if volume.spec.form is not VolumeForm.BLOCK:
                raise Conflict(
                    f"volume {volume.name} is a directory", hint="block volumes are replicated", field="volume"
                )
            if pool.name == volume.spec.pool:
                raise Conflict(f"{volume.name} is in pool {pool.name} itself", hint="name another pool", field="pool")
            if Feature.SNAPSHOT.value not in pool.status.features and body.mode == "async":
                raise Conflict(f"pool {pool.name} keeps no snapshots", hint="a directory, btrfs, zfs or rbd pool does")
            if (replica := replication_of(tx, volume.id)) is not None:
                raise Conflict(f"{volume.name} is replicated already", hint=f"lamella replication show {replica.name}")
            name = check_name(body.target or f"{volume.name}-replica")
            target = tx.insert(_target(volume, name, pool.name))
            spec = ReplicationSpec(volume=volume.id, target=target.id, pool=pool.name, mode=body.mode, every=body.every)
            status = ReplicationStatus(host=volume.status.host)
            made: Replication = new_resource(
                "replication", check_name(body.name or volume.name), spec, status, project=project, labels=body.labels
            )
            made = tx.insert(made)
            record(tx, made, "replication.created", f"{who.name} has {volume.name} kept in pool {pool.name}, too")
            tx.audit(Audit(principal=who.name, verb="create", subject=f"replication/{project}/{made.name}"))
            return made

        made = await self._store.write(write)
        try:
            await self._one(made.id)
        except Unavailable:
            pass
        except LamellaError:
            await self._store.write(lambda tx: _remove(tx, made.id))
            raise
        return await self._store.by_id(made.id)

    async def pause(self, who: Principal, project: str, name: str, *, paused: bool) -> Replication:
        def write(tx: Transaction) -> Replication:
            found = find(tx, project, name)
            _check_lives(found)
            found.spec.paused = paused
            verb = "pause" if paused else "resume"
            tx.audit(Audit(principal=who.name, verb=verb, subject=f"replication/{project}/{found.name}"))
            return tx.update(found)

        found = await self._store.write(write)
        await self._one(found.id)
        return await self._store.by_id(found.id)

    async def promote(self, who: Principal, project: str, name: str, *, force: bool) -> Replication:
        """The replica takes its source's place.

        :raise Conflict: when acknowledged writes would be lost, and *force* is not set.
        """

        def write(tx: Transaction) -> Replication:
            found = find(tx, project, name)
            detail = "forced" if force else ""
            tx.audit(
                Audit(principal=who.name, verb="promote", subject=f"replication/{project}/{found.name}", detail=detail)
            )
            return found

        found = await self._store.write(write)
        async with self._turns.setdefault(found.id, asyncio.Lock()):
            source, target = await self._volumes(found)
            if source is None or target is None:
                raise NotFound("one of its volumes is gone")
            agent = self._hosts.agent(found.status.host)
            request = Promote(replication=found, source=source, target=target, force=force)
            seen: VolumeStatus = await ask(agent, request, VolumeStatus)
            await self._store.write(lambda tx: _promoted(tx, found, seen, who.name))
        return await self._store.by_id(found.id)

    async def delete(self, who: Principal, project: str, name: str) -> None:
        """It ends, and the replica goes with it unless it was promoted."""

        def write(tx: Transaction) -> Replication:
            found = find(tx, project, name)
            found.deleted_at = found.deleted_at or now()
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"replication/{project}/{found.name}"))
            return tx.update(found)

        found = await self._store.write(write)
        try:
            await self._one(found.id)
        except LamellaError as error:
            if not isinstance(error, Unavailable):
                await self._store.write(lambda tx: _kept(tx, found.id))
            raise

    # --- kept true

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            ids = [item.id for item in await self._store.read(lambda tx: list[Replication](tx.list("replication")))]
            for id in ids:
                try:
                    await self._one(id)
                except LamellaError as error:
                    log.info("replication %s: %s", id, error)
                except Exception:
                    log.exception("replication %s", id)

    async def _one(self, id: str) -> None:
        """Tell its host what it does not know yet, and write down what it sees."""
        async with self._turns.setdefault(id, asyncio.Lock()):
            row: Replication | None = await self._store.read(lambda tx: tx.by_id(id))
            if row is None:
                return
            agent = self._hosts.agent(row.status.host)
            source, target = await self._volumes(row)
            if row.deleted_at is not None:
                await ask(agent, EndReplication(replication=row, source=source, target=target), None)
                await self._store.write(lambda tx: _remove(tx, id))
                return
            if row.status.observed_generation < row.generation and row.status.promoted_at is None:
                if source is None or target is None:
                    raise Internal(f"a volume of replication {row.name} is gone")
                request = Replicate(replication=row, source=source, target=target)
                seen: ReplicationStatus = await ask(agent, request, ReplicationStatus)
            else:
                all = await ask(agent, ObserveReplications(ids=[id]), dict[str, ReplicationStatus])
                if id not in all:
                    return
                seen = all[id]
            await self._store.write(lambda tx: _seen(tx, id, row.generation, seen))

    async def _volumes(self, row: Replication) -> tuple[Volume | None, Volume | None]:
        return await self._store.read(lambda tx: (tx.by_id(row.spec.volume), tx.by_id(row.spec.target)))


def find(tx: Transaction, project: str, name: str) -> Replication:
    """By name or id, or by the name of its volume.

    :raise NotFound: with the command that makes one.
    """
    found = tx.get("replication", project, name)
    if found is None:
        named = tx.get("volume", project, name)
        found = replication_of(tx, named.id) if named is not None else tx.by_id(name)
    if found is None or found.kind != "replication" or found.project != project:
        raise NotFound(
            f"no replication is called {name!r} in project {project}",
            hint=f"make one: lamella replication create {name} --to pool:NAME",
        )
    return found


def replication_of(tx: Transaction, volume_id: str) -> Replication | None:
    """The replication that has the volume as its source and was not promoted."""
    for item in tx.list("replication"):
        if item.spec.volume == volume_id and item.status.promoted_at is None and item.deleted_at is None:
            return item
    return None


def _target(volume: Volume, name: str, pool: str) -> Volume:
    spec: VolumeSpec = msgspec.structs.replace(volume.spec, pool=pool, source=None, owner=None, tier=None)
    why = f"it is the replica of {volume.name}"
    unusable = Condition(type=USABLE, status=False, reason="replica", message=why, hint="promote it first", since=now())
    status = VolumeStatus(
        phase=StoragePhase.READY,
        host=volume.status.host,
        size=volume.status.size,
        conditions=[unusable],
        observed_generation=1,
    )
    return new_resource("volume", name, spec, status, project=volume.project)


def _check_lives(row: Replication) -> None:
    if row.status.promoted_at is not None or row.deleted_at is not None:
        raise Conflict(f"replication {row.name} has ended", hint=f"lamella replication rm {row.name}")


def _seen(tx: Transaction, id: str, generation: int, seen: ReplicationStatus) -> None:
    row: Replication | None = tx.by_id(id)
    if row is None:
        return
    before = row.status
    seen.host, seen.observed_generation = before.host, generation
    same = msgspec.structs.replace(seen, rpo=before.rpo, worst=before.worst, conditions=before.conditions) == before
    if same and [c.message for c in seen.conditions] == [c.message for c in before.conditions]:
        return
    for condition in seen.conditions:
        condition.since = now()
    if seen.phase is not before.phase:
        why = seen.conditions[0].message if seen.conditions else ""
        record(
            tx, row, f"replication.{seen.phase.value}", f"{row.name} is {seen.phase.value}{f': {why}' if why else ''}"
        )
    row.status = seen
    tx.update(row)


def _promoted(tx: Transaction, row: Replication, seen: VolumeStatus, who: str) -> None:
    current: Replication | None = tx.by_id(row.id)
    source: Volume | None = tx.by_id(row.spec.volume)
    target: Volume | None = tx.by_id(row.spec.target)
    if current is None or target is None:
        return
    current.status.phase, current.status.promoted_at = ReplicationPhase.PROMOTED, current.status.promoted_at or now()
    target.status.size, target.status.used, target.status.key = seen.size, seen.used, seen.key
    target.status.conditions = drop(target.status.conditions, USABLE)
    tx.update(target)
    if source is not None:
        why = Conflict(f"its replica {target.name} took its place", hint=f"lamella volume rm {source.name}")
        source.status.conditions = put(source.status.conditions, of(why, USABLE))
        tx.update(source)
    record(tx, tx.update(current), "replication.promoted", f"{who} promoted {target.name}")


def _kept(tx: Transaction, id: str) -> None:
    row = tx.by_id(id)
    if row is not None:
        row.deleted_at = None
        tx.update(row)


def _remove(tx: Transaction, id: str) -> None:
    row: Replication | None = tx.by_id(id)
    if row is None:
        return
    if row.status.promoted_at is None and tx.by_id(row.spec.target) is not None:
        tx.delete(row.spec.target)
    record(tx, row, "replication.removed", f"replication {row.name} has ended")
    tx.delete(id)
