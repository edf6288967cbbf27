"""Volumes brought in from files, taken out as files, moved to other pools: operations that go on after a restart."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import msgspec

from lamella.control.backup.lookup import part_with_backups
from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.storage.asking import Hosts, Lost, ask
from lamella.control.storage.attaching import BUSY, check_usable, free
from lamella.control.storage.fitting import settled_spec
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.lookup import find_pool, find_snapshot, find_volume, held
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.placing import host_for, host_of
from lamella.model.errors import Conflict, Invalid, LamellaError, Unavailable
from lamella.model.ids import check_name, new_id
from lamella.model.operation import Operation
from lamella.model.quantity import format_size
from lamella.model.replication_bodies import VolumeImport, VolumeMove
from lamella.model.replication_requests import DigestExport, ExportedDigest
from lamella.model.requests import Principal
from lamella.model.resource import new_resource
from lamella.model.storage import KeyWrap, Pool, StoragePhase, Volume, VolumeForm, VolumeStatus
from lamella.model.storage_requests import DeleteVolume, ImportVolume, MoveVolume
from lamella.store.store import Audit, Store, Transaction

PATIENCE = 60.0
# How long a snapshot may take to go, in seconds.
SNAPSHOT = 3600.0


class Transferring:
    """Verbs that carry a volume's content somewhere."""

    def __init__(self, store: Store, keeper: Keeper, operations: Operations, hosts: Hosts) -> None:
        self._store = store
        self._keeper = keeper
        self._operations = operations
        self._hosts = hosts
        operations.add("import volume", self._import, again=True)
        operations.add("move", self._move, again=True, ended=free)

    # --- in

    async def bring(self, who: Principal, project: str, body: VolumeImport, *, wait: float) -> Operation:
        """A new volume of what the file of the host holds; it is there when the operation has ended.

        :raise Conflict: when the name is taken. :raise NotFound: when there is no such pool.
        """
        check_name(body.name)
        if body.spec.form is not VolumeForm.BLOCK:
            raise Invalid("a disk becomes a block volume", hint="leave the form out", field="spec.form")
        if body.spec.encryption is KeyWrap.PASSPHRASE:
            raise Invalid(
                "an import takes no passphrase",
                hint="encrypt it with the key file, then lamella volume rekey",
                field="spec",
            )
        if body.spec.source is not None or body.spec.owner is not None:
            raise Invalid("an imported volume has neither source nor owner", field="spec")

        def write(tx: Transaction) -> Operation:
            need_project(tx, project)
            if tx.get("volume", project, body.name) is not None:
                raise Conflict(f"there is a volume {body.name} already", hint="--name says another", field="name")
            pool = find_pool(tx, body.spec.pool, field="spec.pool")
            tx.audit(
                Audit(principal=who.name, verb="import", subject=f"volume/{project}/{body.name}", detail=body.path)
            )
            arguments = {
                "id": new_id("volume"),
                "host": host_for(pool, tx.list("host")).id,
                "body": msgspec.json.encode(body).decode(),
            }
            return self._operations.intend(tx, who, project, "import volume", f"volume/{body.name}", arguments)

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _import(self, job: Job) -> str:
        body = msgspec.json.decode(job.arguments["body"], type=VolumeImport)
        host = job.arguments["host"]
        spec = body.spec if not body.spec.size else settled_spec(body.spec)
        status = VolumeStatus(phase=StoragePhase.READY, host=host, observed_generation=1)
        volume: Volume = new_resource("volume", body.name, spec, status, project=job.project, labels=body.labels)
        volume.id = job.arguments["id"]
        agent = await self._hosts.reach(host, patience=PATIENCE)
        try:
            request = ImportVolume(volume=volume, path=body.path, format=body.format)
            seen: VolumeStatus = await ask(agent, request, VolumeStatus, job.tell)
            volume.spec.size = seen.size
            status.size, status.used, status.key = seen.size, seen.used, seen.key
            name = await self._store.write(lambda tx: _insert(tx, volume, body.path))
        except Lost:
            raise
        except LamellaError:
            await ask(agent, DeleteVolume(volume=volume), None)
            raise
        return name

    # --- out

    async def export(self, who: Principal, project: str, name: str, *, format: str) -> AsyncIterator[bytes]:
        """The bytes of *name*, a volume (``data``) or a snapshot of one (``data@nightly``)."""
        volume, snapshot = await self._store.write(lambda tx: _named(tx, who, project, name))
        agent = self._hosts.agent(await self._store.read(lambda tx: host_of(tx, volume)))
        pieces = cast("AsyncGenerator[bytes]", agent.export_volume(volume, snapshot, format))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def digest(self, who: Principal, project: str, name: str, *, format: str) -> ExportedDigest:
        """Of the newest export of *name* that came to its end."""
        volume, snapshot = await self._store.read(lambda tx: _find(tx, project, name))
        request = DigestExport(volume=volume, snapshot=snapshot, format=format)
        host = await self._store.read(lambda tx: host_of(tx, volume))
        return await ask(self._hosts.agent(host), request, ExportedDigest)

    # --- elsewhere

    async def move(self, who: Principal, project: str, name: str, body: VolumeMove, *, wait: float) -> Operation:
        """To another pool of its host, while it is used or not. The snapshots that its next backups would begin from stay behind.

        :raise Conflict: when it is there, or its host has no such pool, or it is being backed up.
        """
        operation = await self._store.write(lambda tx: self.intend_move(tx, who, project, name, body))
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    def intend_move(self, tx: Transaction, who: Principal, project: str, name: str, body: VolumeMove) -> Operation:
        volume = find_volume(tx, project, name)
        check_usable(tx, volume)
        pool = find_pool(tx, body.pool, field="pool")
        if pool.name == volume.spec.pool:
            raise Conflict(f"volume {volume.name} is in pool {pool.name} already", field="pool")
        if pool.status.phase is not StoragePhase.READY:
            raise Conflict(
                f"pool {pool.name} is {pool.status.phase}", hint=f"lamella pool show {pool.name}", field="pool"
            )
        parted = " ".join(part_with_backups(tx, volume))
        arguments = {"volume": volume.id, "pool": pool.name, "speed": str(body.speed), "parted": parted}
        operation = self._operations.intend(tx, who, project, "move", f"volume/{volume.name}", arguments)
        tx.claim(BUSY, volume.id, operation.id)
        tx.audit(Audit(principal=who.name, verb="move", subject=f"volume/{project}/{volume.name}", detail=pool.name))
        return operation

    def begin(self, operation: Operation) -> None:
        """Carry out what :meth:`intend_move` wrote, after its commit."""
        self._operations.start(operation)

    async def _move(self, job: Job) -> str:
        arguments = job.arguments

        def look(tx: Transaction) -> tuple[Volume, Pool]:
            found = tx.by_id(arguments["volume"])
            if found is None:
                raise Conflict("the volume is gone")
            return found, find_pool(tx, arguments["pool"])

        for snapshot in arguments.get("parted", "").split():
            await self._keeper.settle(snapshot, SNAPSHOT, job.tell)
        volume, pool = await self._store.read(look)
        request = MoveVolume(volume=volume, pool=pool, speed=int(arguments["speed"]))
        seen = await self._heard(volume, request, job)

        def write(tx: Transaction) -> None:
            current: Volume | None = tx.by_id(volume.id)
            if current is None:
                return
            settled = current.status.observed_generation == current.generation
            before, current.spec.pool = current.spec.pool, pool.name
            current.status.used = seen.used
            current = tx.update(current)
            if settled:
                current.status.observed_generation = current.generation
                current = tx.update(current)
            record(tx, current, "volume.moved", f"volume {current.name} moved from pool {before} to {pool.name}")

        await self._store.write(write)
        return volume.name

    async def _heard(self, volume: Volume, request: MoveVolume, job: Job) -> VolumeStatus:
        """What became of it. One that cannot be told is asked for again, such as of a pool that stands still: it goes on there, and the
        row has to say where the volume lies."""
        agent = await self._hosts.reach(await self._store.read(lambda tx: host_of(tx, volume)), patience=PATIENCE)
        try:
            return await ask(agent, request, VolumeStatus, job.tell)
        except Unavailable as error:
            raise Lost(error.message, hint=error.hint) from error


def _insert(tx: Transaction, volume: Volume, path: str) -> str:
    known = tx.by_id(volume.id)
    if known is None:
        known = tx.insert(volume)
        record(tx, known, "volume.imported", f"volume {volume.name} is {format_size(volume.status.size)} from {path}")
    return known.name


def _named(tx: Transaction, who: Principal, project: str, name: str) -> tuple[Volume, str]:
    volume, snapshot = _find(tx, project, name)
    tx.audit(Audit(principal=who.name, verb="export", subject=f"volume/{project}/{name}"))
    return volume, snapshot


def _find(tx: Transaction, project: str, name: str) -> tuple[Volume, str]:
    """The volume, and the id of the snapshot that *name* means; empty when it is the volume itself."""
    if "@" not in name:
        volume = find_volume(tx, project, name)
        if volume.status.phase is not StoragePhase.READY:
            raise Conflict(f"volume {volume.name} is {volume.status.phase}", hint=f"lamella volume show {volume.name}")
        return volume, ""
    snapshot = find_snapshot(tx, project, name)
    if snapshot.status.phase is not StoragePhase.READY:
        raise Conflict(f"snapshot {snapshot.name} is {snapshot.status.phase}")
    of = held(snapshot)
    if len(of) != 1:
        raise Invalid(
            f"snapshot {name} is of {len(of)} volumes",
            hint="make a volume from each: lamella volume create --from",
            field="name",
        )
    found: Volume | None = tx.by_id(of[0])
    if found is None:
        raise Conflict(f"the volume of snapshot {name} is gone")
    return found, snapshot.id
