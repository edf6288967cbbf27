"""Tiering: volumes that nobody uses go to a slower pool, and come back when they are used. Moves are live, and rare."""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime

from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.lookup import find_pool, find_volume
from lamella.control.storage.transferring import Transferring
from lamella.model.errors import Conflict, LamellaError
from lamella.model.operation import Operation
from lamella.model.replication import TieringPolicy, TierState, VolumeAccess
from lamella.model.replication_bodies import VolumeMove
from lamella.model.replication_requests import MeasureAccess
from lamella.model.requests import Principal
from lamella.model.resource import now
from lamella.model.storage import Volume
from lamella.store.store import Audit, Store, Transaction

log = logging.getLogger("lamella.control")

# Seconds between two looks at all volumes with a policy.
EVERY = 60.0
# What makes a cold volume hot: somebody works with it. One who only looks at its superblock does not.
WORK = 256
# A volume that was moved stays for this part of the policy's time, and at most so many seconds.
REST_PART = 0.25
REST_MOST = 86400.0


def decide(policy: TieringPolicy, pool: str, access: VolumeAccess, state: TierState | None, at: datetime) -> str | None:
    """The pool that a volume in *pool* should move to; ``None`` when it is where it should be. Pure.

    Cold is what saw nothing for ``after`` seconds. Hot again is what saw :data:`WORK` operations since it was moved. Whatever was moved
    rests for a while, so that no volume goes back and forth.
    """
    if state is not None and (at - state.at).total_seconds() < min(REST_PART * policy.after, REST_MOST):
        return None
    if pool == policy.hot:
        used = access.last or access.since
        moved = state.at if state is not None else access.since
        return policy.cold if (at - max(used, moved)).total_seconds() >= policy.after else None
    if pool == policy.cold:
        before = state.operations if state is not None else 0
        # Counters that began anew say less than before.
        work = access.operations - before if access.operations >= before else access.operations
        return policy.hot if work >= WORK else None
    return policy.hot


class Tiering:
    """Policies, and the task that follows them."""

    def __init__(self, store: Store, hosts: Hosts, transferring: Transferring) -> None:
        self._store = store
        self._hosts = hosts
        self._transferring = transferring
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def open(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="tiering")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def set(self, who: Principal, project: str, name: str, policy: TieringPolicy | None) -> Volume:
        """:raise NotFound: when there is no such volume or pool. :raise Conflict: when hot and cold are the same pool."""

        def write(tx: Transaction) -> Volume:
            volume = find_volume(tx, project, name)
            if volume.spec.owner is not None:
                raise Conflict(
                    f"volume {volume.name} is an instance's own", hint="volumes with a life of their own are tiered"
                )
            if policy is not None:
                if policy.hot == policy.cold:
                    raise Conflict("hot and cold are the same pool", hint="name two", field="policy")
                for pool in (policy.hot, policy.cold):
                    find_pool(tx, pool, field="policy")
            settled = volume.status.observed_generation == volume.generation
            volume.spec.tier, volume.status.tier = policy, None
            tx.audit(Audit(principal=who.name, verb="tier", subject=f"volume/{project}/{volume.name}"))
            volume = tx.update(volume)
            if settled:
                volume.status.observed_generation = volume.generation
                volume = tx.update(volume)
            return volume

        volume = await self._store.write(write)
        self._changed.set()
        return volume

    async def look(self) -> list[str]:
        """Move what its policy wants elsewhere; names of the volumes that begin to move."""

        def tiered(tx: Transaction) -> list[Volume]:
            return [
                volume for volume in tx.list("volume") if volume.spec.tier is not None and volume.deleted_at is None
            ]

        by_host: dict[str, list[Volume]] = {}
        for volume in await self._store.read(tiered):
            by_host.setdefault(volume.status.host or "", []).append(volume)
        begun: list[str] = []
        for host, volumes in by_host.items():
            with suppress(LamellaError):
                agent = self._hosts.agent(host)
                seen = await ask(agent, MeasureAccess(volumes=volumes), dict[str, VolumeAccess])
                for volume in volumes:
                    if volume.id in seen and await self._one(volume, seen[volume.id]):
                        begun.append(volume.name)
        return begun

    async def _one(self, volume: Volume, access: VolumeAccess) -> bool:
        policy = volume.spec.tier
        if policy is None or (pool := decide(policy, volume.spec.pool, access, volume.status.tier, now())) is None:
            return False
        who = Principal(name="tiering", kind="system", admin=True)

        def write(tx: Transaction) -> Operation:
            operation = self._transferring.intend_move(tx, who, volume.project, volume.name, VolumeMove(pool=pool))
            current = tx.by_id(volume.id)
            if current is not None:
                current.status.tier = TierState(at=now(), operations=access.operations)
                tx.update(current)
            return operation

        try:
            operation = await self._store.write(write)
        except LamellaError as error:
            log.info("volume %s does not go to pool %s: %s", volume.name, pool, error)
            return False
        self._transferring.begin(operation)
        return True

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                # A new policy is followed at once.
                await asyncio.wait_for(self._changed.wait(), EVERY)
            self._changed.clear()
            try:
                await self.look()
            except Exception:
                log.exception("tiering")
