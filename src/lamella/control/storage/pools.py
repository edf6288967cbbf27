"""Pools: made on every host that is there, or not at all; hosts that join later open them because control says so."""

from typing import Any

import msgspec

from lamella.control.events import record
from lamella.control.merging import merge_labels, merge_patch
from lamella.control.storage.asking import Hosts, Tell, ask
from lamella.control.storage.conditions import READY, drop, of, put
from lamella.control.storage.hearing import measured
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.lookup import find_pool
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.steps import Step
from lamella.model.errors import Conflict, DeadlineExceeded, Forbidden, Invalid, LamellaError, Unavailable, Unsupported
from lamella.model.ids import check_name
from lamella.model.operation import Operation
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource, now
from lamella.model.storage import Feature, Pool, PoolSpec, PoolStatus, StoragePhase
from lamella.model.storage_bodies import PoolCreate, PoolScrub
from lamella.model.storage_requests import ClosePool, OpenPool, Report, ScrubPool
from lamella.model.validation import invalid
from lamella.store.store import Audit, Store, Transaction

DEFAULT = "default"


class Pools:
    """Intent for pools; administrators alone have any."""

    def __init__(self, store: Store, keeper: Keeper, operations: Operations, hosts: Hosts) -> None:
        self._store = store
        self._keeper = keeper
        self._operations = operations
        self._hosts = hosts
        keeper.know("pool", self._take, _failed)
        operations.add("scrub", self._scrub)

    async def create(self, who: Principal, project: str, body: PoolCreate, *, wait: float) -> Pool:
        """:raise Unsupported: when a host has no such driver. :raise LamellaError: what its driver says; nothing is left then."""
        _check(who, project)
        check_name(body.name)
        if body.spec.path and not body.spec.path.isprintable():
            raise Invalid("the path has characters that no terminal shows", hint="write it plainly", field="spec.path")

        def write(tx: Transaction) -> Pool:
            twin = next((pool for pool in tx.list("pool") if body.spec.path and _place(pool) == _place(body)), None)
            if twin is not None and twin.name != body.name:
                raise Conflict(
                    f"pool {twin.name} is there already: {body.spec.driver} at {body.spec.path}",
                    hint="use that one, or another path",
                    field="spec.path",
                )
            status = PoolStatus(phase=StoragePhase.PENDING)
            pool = tx.insert(new_resource("pool", body.name, body.spec, status, labels=body.labels))
            tx.audit(Audit(principal=who.name, verb="create", subject=f"pool/{body.name}"))
            return pool

        if not self._hosts.present:
            raise Unavailable("no host is there to make a pool on", hint="lamella host ls")
        pool = await self._store.write(write)
        try:
            await self._keeper.settle(pool.id, wait)
        except DeadlineExceeded:
            raise
        except LamellaError:
            await self._store.write(lambda tx: _forget(tx, pool.id))
            raise
        return await self._store.by_id(pool.id)

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None
    ) -> Pool:
        """Labels, and when it warns."""
        _check(who, project)

        def write(tx: Transaction) -> Pool:
            pool = find_pool(tx, name)
            if isinstance(body.labels, dict):
                merge_labels(pool.labels, body.labels)
            if isinstance(body.spec, dict):
                try:
                    wanted = msgspec.convert(merge_patch(msgspec.to_builtins(pool.spec), body.spec), PoolSpec)
                except msgspec.ValidationError as error:
                    raise invalid(str(error), "the change", "spec") from None
                if msgspec.structs.replace(wanted, warn_below=pool.spec.warn_below) != pool.spec:
                    raise Unsupported(
                        "a pool stays where it is: only spec.warn_below of it can be changed",
                        hint="make another pool, and move volumes there",
                        field="spec",
                    )
                pool.spec = wanted
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"pool/{pool.name}"))
            return tx.update(pool, expected=expected)

        return await self._store.write(write)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None, wait: float) -> None:
        """Forget it; what lies in it stays where it is.

        :raise Conflict: when volumes are in it, or it is the default one.
        """
        _check(who, project)

        def write(tx: Transaction) -> Pool:
            pool = find_pool(tx, name)
            if pool.name == DEFAULT:
                raise Conflict("pool default stays: instances' own disks are in it", hint="move volumes to another one")
            inside = [volume.name for volume in tx.list("volume") if volume.spec.pool == pool.name]
            if inside:
                raise Conflict(
                    f"pool {pool.name} has {len(inside)} volume{'s' if len(inside) > 1 else ''}: {', '.join(inside[:5])}",
                    hint="remove them or move them to another pool first",
                )
            pool.status.phase, pool.deleted_at = StoragePhase.DELETING, pool.deleted_at or now()
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"pool/{pool.name}"))
            return tx.update(pool, expected=expected)

        pool = await self._store.write(write)
        await self._keeper.settle(pool.id, wait)

    async def scrub(self, who: Principal, project: str, name: str, body: PoolScrub, *, wait: float) -> Operation:
        """Read everything in it, and compare."""
        _check(who, project)

        def write(tx: Transaction) -> Operation:
            pool = find_pool(tx, name)
            if pool.status.phase is not StoragePhase.READY:
                raise Conflict(f"pool {pool.name} is {pool.status.phase}", hint=f"lamella pool show {pool.name}")
            tx.audit(Audit(principal=who.name, verb="scrub", subject=f"pool/{pool.name}"))
            arguments = {"pool": pool.id, "repair": "yes" if body.repair else ""}
            return self._operations.intend(tx, who, project, "scrub", f"pool/{pool.name}", arguments)

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _scrub(self, job: Job) -> str:
        pool: Pool = await self._store.by_id(job.arguments["pool"])
        hosts = list(self._hosts.present.values())
        if not hosts:
            raise Unavailable("no host is there that could look", hint="lamella host ls")
        job.report = Report()
        for agent in hosts[:1] if Feature.SHARED in pool.status.features else hosts:
            request = ScrubPool(pool=pool, repair=bool(job.arguments["repair"]))
            add(job.report, await ask(agent, request, Report, job.tell))
        unmended = sum(not finding.mended for finding in job.report.findings)
        message = f"pool {pool.name} was read: {len(job.report.findings)} findings, {unmended} not mended"
        await self._store.write(lambda tx: record(tx, pool, "pool.scrubbed", message))
        return pool.name

    async def _take(self, pool: Pool, step: Step, tell: Tell) -> None:
        if step is Step.MAKE:
            await self._open(pool, tell)
        else:
            for agent in self._hosts.present.values():
                await ask(agent, ClosePool(pool=pool), None, tell)
            await self._store.write(lambda tx: _gone(tx, pool.id))

    async def _open(self, pool: Pool, tell: Tell) -> None:
        hosts = self._hosts.present
        if not hosts:
            raise Unavailable("no host is there to make a pool on", hint="lamella host ls")
        found = [await ask(agent, OpenPool(pool=pool), PoolStatus, tell) for agent in hosts.values()]

        def write(tx: Transaction) -> None:
            current: Pool | None = tx.by_id(pool.id)
            if current is None or current.status.phase is not StoragePhase.PENDING:
                return
            current.status.phase = StoragePhase.READY
            current.status.conditions = drop(current.status.conditions, READY)
            current.status = measured(current, found[0])
            for host in hosts:
                known = tx.by_id(host)
                if known is not None:
                    known.status.pools[pool.name] = current.status
                    tx.update(known)
            record(tx, tx.update(current), "pool.created", f"pool {pool.name} is {pool.spec.driver}")

        await self._store.write(write)


def add(report: Report, other: Report) -> None:
    """Put what *other* found into *report*."""
    report.checked += other.checked
    report.bytes += other.bytes
    report.findings += other.findings


def _check(who: Principal, project: str) -> None:
    """:raise Forbidden: unless *who* is an administrator. :raise Invalid: in any project but default."""
    if not who.admin:
        raise Forbidden("pools are for administrators of the layer", hint="volumes are for everybody")
    if project != "default":
        raise Invalid("pools belong to the whole layer", hint="ask in project default", field="project")


def _place(pool: Pool | PoolCreate) -> tuple[str, str]:
    return pool.spec.driver, pool.spec.path.rstrip("/") or pool.spec.path


def _failed(tx: Transaction, row: Any, step: Step, error: LamellaError) -> None:
    pool: Pool = row
    pool.status.conditions = put(pool.status.conditions, of(error))
    if not isinstance(error, Unavailable):
        if step is Step.MAKE:
            pool.status.phase = StoragePhase.FAILED
            record(tx, pool, "pool.failed", f"pool {pool.name} cannot be made: {error.message}")
        else:
            pool.status.phase, pool.deleted_at = StoragePhase.READY, None
    tx.update(pool)


def _forget(tx: Transaction, id: str) -> None:
    """Of a pool that was never ready nothing is left: no host has it, and no row."""
    pool: Pool | None = tx.by_id(id)
    if pool is not None and pool.status.phase in (StoragePhase.PENDING, StoragePhase.FAILED):
        tx.delete(id)


def _gone(tx: Transaction, id: str) -> None:
    pool: Pool | None = tx.by_id(id)
    if pool is None:
        return
    for host in tx.list("host"):
        if host.status.pools.pop(pool.name, None) is not None:
            tx.update(host)
    record(tx, pool, "pool.removed", f"pool {pool.name} is removed; what lies there stays")
    tx.delete(id)
