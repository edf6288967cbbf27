"""Replications: what was asked stands in their rows; their hosts carry it out, and are looked at every so often.

Level-triggered: what a host has to be told is read from the row each time, so a daemon that ended in between goes on where it was.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from lamella.control import replication_rows as rows
from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.attaching import check_openable, check_usable
from lamella.control.storage.lookup import find_pool, find_volume
from lamella.model.errors import Conflict, Internal, LamellaError, NotFound, Unavailable
from lamella.model.ids import check_name
from lamella.model.replication import (
    Replication,
    ReplicationSpec,
    ReplicationStatus,
)
from lamella.model.replication_bodies import ReplicationCreate
from lamella.model.replication_requests import EndReplication, ObserveReplications, Promote, Replicate
from lamella.model.requests import Principal
from lamella.model.resource import new_resource, now
from lamella.model.storage import Feature, Volume, VolumeForm, VolumeStatus
from lamella.store.store import Audit, Store, Transaction

log = logging.getLogger("lamella.control")

# Seconds between two looks at the hosts' replications.
EVERY = 2.0


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
            check_openable(volume)
            pool = find_pool(tx, body.pool.removeprefix("pool:"), field="pool")
            if volume.spec.form is not VolumeForm.BLOCK:
                raise Conflict(
                    f"volume {volume.name} is a directory", hint="block volumes are replicated", field="volume"
                )
            if pool.name == volume.spec.pool:
                raise Conflict(f"{volume.name} is in pool {pool.name} itself", hint="name another pool", field="pool")
            if Feature.SNAPSHOT.value not in pool.status.features and body.mode == "async":
                raise Conflict(f"pool {pool.name} keeps no snapshots", hint="a directory, btrfs, zfs or rbd pool does")
            if (replica := rows.replication_of(tx, volume.id)) is not None:
                raise Conflict(f"{volume.name} is replicated already", hint=f"lamella replication show {replica.name}")
            name = check_name(body.target or f"{volume.name}-replica")
            target = tx.insert(rows.target_of(volume, name, pool.name))
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
            await self._store.write(lambda tx: rows.removed(tx, made.id))
            raise
        return await self._store.by_id(made.id)

    async def pause(self, who: Principal, project: str, name: str, *, paused: bool) -> Replication:
        def write(tx: Transaction) -> Replication:
            found = rows.find(tx, project, name)
            rows.check_lives(found)
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
            found = rows.find(tx, project, name)
            detail = "forced" if force else ""
            tx.audit(
                Audit(principal=who.name, verb="promote", subject=f"replication/{project}/{found.name}", detail=detail)
            )
            return found

        found = await self._store.write(write)
        async with self._turns.setdefault(found.id, asyncio.Lock()):
            await self._promote(found, who.name, force=force)
        return await self._store.by_id(found.id)

    async def _promote(self, found: Replication, who: str, *, force: bool) -> None:
        source, target = await self._volumes(found)
        if source is None or target is None:
            raise NotFound(f"a volume of replication {found.name} is gone", hint=f"lamella replication rm {found.name}")
        agent = self._hosts.agent(found.status.host)
        request = Promote(replication=found, source=source, target=target, force=force)
        seen: VolumeStatus = await ask(agent, request, VolumeStatus)
        await self._store.write(lambda tx: rows.promoted(tx, found, seen, who))

    async def delete(self, who: Principal, project: str, name: str) -> None:
        """It ends, and the replica goes with it unless it was promoted."""

        def write(tx: Transaction) -> Replication:
            found = rows.find(tx, project, name)
            found.deleted_at = found.deleted_at or now()
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"replication/{project}/{found.name}"))
            return tx.update(found)

        found = await self._store.write(write)
        try:
            await self._one(found.id)
        except LamellaError as error:
            if not isinstance(error, Unavailable):
                await self._store.write(lambda tx: rows.taken_back(tx, found.id))
            raise

    # --- kept true

    async def look(self, volume_ids: Iterable[str]) -> None:
        """See now how far the replicas of these volumes are, as far as their hosts answer."""
        ids = list(volume_ids)
        found = await self._store.read(lambda tx: [row for id in ids if (row := rows.replication_of(tx, id))])
        for row in found:
            with suppress(LamellaError):
                await self._one(row.id)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            ids = [item.id for item in await self._store.read(lambda tx: list[Replication](tx.list("replication")))]
            for id in ids:
                try:
                    await self._one(id)
                except Unavailable as error:
                    log.info("replication %s: %s", id, error)
                except LamellaError as error:
                    log.info("replication %s: %s", id, error)
                    await self._store.write(partial(rows.refused, id=id, error=error))
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
                await self._store.write(lambda tx: rows.removed(tx, id))
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
            if seen.promoted_at is not None and row.status.promoted_at is None:
                # It was promoted, and whoever asked did not live to write it down.
                await self._promote(row, "lamella", force=True)
                return
            await self._store.write(lambda tx: rows.seen(tx, id, row.generation, seen))

    async def _volumes(self, row: Replication) -> tuple[Volume | None, Volume | None]:
        return await self._store.read(lambda tx: (tx.by_id(row.spec.volume), tx.by_id(row.spec.target)))
