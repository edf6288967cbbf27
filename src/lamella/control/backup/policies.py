"""Policies: which volumes are backed up by themselves, how often, and what is kept. When each is due is written down, so a daemon that was
away makes up for what was missed, once."""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime, timedelta

from lamella.control.backup.backups import Backups
from lamella.control.backup.lookup import LAYER, check_layer, find_policy, name_of_policy, policy_of, repository_to_use
from lamella.control.backup.repositories import Repositories
from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.storage.lookup import find_volume
from lamella.model.backup import BackupPolicy, PolicySpec, PolicyStatus, Repository
from lamella.model.backup_bodies import BackupCreate, PolicyPut, RepositoryVerify
from lamella.model.errors import LamellaError
from lamella.model.operation import OperationPhase
from lamella.model.requests import Principal
from lamella.model.resource import Condition, new_resource, now
from lamella.store.store import Audit, Store, Transaction

log = logging.getLogger("lamella.control")

# How often it is looked what is due; how long after a failure it is tried again; how often room is given back. Seconds.
LOOK = 15.0
AGAIN = 600
PRUNE = 7 * 86400
LONGEST = 7 * 86400.0
_WHO = Principal(name="policy", admin=True)


class Policies:
    """Intent for policies, and the one task that carries them out, one backup at a time."""

    def __init__(self, store: Store, backups: Backups, repositories: Repositories) -> None:
        self._store, self._backups, self._repositories = store, backups, repositories
        self._task: asyncio.Task[None] | None = None
        self._look = asyncio.Event()

    async def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="backup policies")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def put(self, who: Principal, project: str, body: PolicyPut) -> BackupPolicy:
        """Set it, in place of the one that the volume has. The first backup is due at once."""

        def write(tx: Transaction) -> BackupPolicy:
            need_project(tx, project)
            repository = repository_to_use(tx, project, body.repository)
            volume = find_volume(tx, project, body.volume) if body.volume else None
            if volume is None:
                check_layer(project, repository)
            spec = PolicySpec(
                volume=volume.id if volume is not None else "",
                repository=repository.id,
                volume_name=volume.name if volume is not None else LAYER,
                repository_name=repository.name,
                every=body.every,
                keep=body.keep,
                verify_every=body.verify_every,
            )
            known = policy_of(tx, spec.volume)
            name = known.name if known is not None else name_of_policy(tx, project, volume)
            tx.audit(Audit(principal=who.name, verb="put", subject=f"policy/{project}/{name}"))
            if known is None:
                return tx.insert(new_resource("policy", name, spec, PolicyStatus(due=now()), project=project))
            known.spec = spec
            return tx.update(known)

        policy = await self._store.write(write)
        self._look.set()
        return policy

    async def delete(self, who: Principal, project: str, name: str) -> None:
        """What was backed up by it stays, until somebody removes it."""

        def write(tx: Transaction) -> None:
            policy = find_policy(tx, project, name)
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"policy/{project}/{name}"))
            tx.delete(policy.id)

        await self._store.write(write)

    async def _run(self) -> None:
        while True:
            try:
                for policy in await self._store.read(due):
                    await self._one(policy)
            except LamellaError as error:
                log.warning("backup policies: %s", error)
            except Exception:
                log.exception("backup policies")
            self._look.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._look.wait()

    async def _one(self, policy: BackupPolicy) -> None:
        """Never raises: what failed is written down, and tried again."""
        failed = ""
        try:
            body = BackupCreate(repository=policy.spec.repository, volume=policy.spec.volume)
            operation = await self._backups.create(_WHO, policy.project, body, wait=LONGEST, policy=policy.id)
            if operation.status.phase is OperationPhase.FAILED:
                failed = operation.status.error
            else:
                await self._afterwards(policy)
        except LamellaError as error:
            failed = error.message
        except Exception as error:
            log.exception("backup policy %s", policy.name)
            failed = f"{type(error).__name__}: {error}"
        await self._store.write(lambda tx: _ran(tx, policy.id, failed))

    async def _afterwards(self, policy: BackupPolicy) -> None:
        repository: Repository = await self._store.by_id(policy.spec.repository)
        pruned = repository.status.pruned_at or repository.created_at
        await self._repositories.forget_old(repository, prune=now() - pruned > timedelta(seconds=PRUNE))
        every = policy.spec.verify_every
        last = policy.status.verified or policy.created_at
        if every and now() - last > timedelta(seconds=every):
            await self._repositories.verify(_WHO, repository.project, repository.id, RepositoryVerify(), wait=LONGEST)
            await self._store.write(lambda tx: _looked(tx, policy.id))


def due(tx: Transaction) -> list[BackupPolicy]:
    """Policies whose time has come, the one that has waited longest first."""
    at = now()
    found: list[BackupPolicy] = [item for item in tx.list("policy") if (item.status.due or at) <= at]
    return sorted(found, key=lambda item: item.status.due or item.created_at)


def next_due(before: datetime | None, at: datetime, every: int) -> datetime:
    """The time after *at* on the grid of *before*: what was missed is made up for once, not again and again."""
    if before is None:
        return at + timedelta(seconds=every)
    steps = max(0, int((at - before).total_seconds() // every))
    return before + timedelta(seconds=every * (steps + 1))


def _ran(tx: Transaction, id: str, failed: str) -> None:
    policy: BackupPolicy | None = tx.by_id(id)
    if policy is None:
        return
    status, at = policy.status, now()
    if failed:
        status.due = at + timedelta(seconds=min(AGAIN, policy.spec.every))
        condition = Condition(type="Ready", status=False, reason="failed", message=failed, since=at)
        status.conditions, fresh = [condition], status.failed != failed
        if fresh:
            record(tx, policy, "policy.failed", f"{policy.name} could not be backed up: {failed}")
    else:
        status.due, status.last, status.conditions = next_due(status.due, at, policy.spec.every), at, []
    status.failed = failed
    tx.update(policy)


def _looked(tx: Transaction, id: str) -> None:
    policy: BackupPolicy | None = tx.by_id(id)
    if policy is not None:
        policy.status.verified = now()
        tx.update(policy)
