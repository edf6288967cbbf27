"""``fsck``: what control knows against what lies in the pools, host by host; and what volumes take, measured now and then."""

import asyncio
import logging
from contextlib import suppress

from lamella.control.events import record
from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.attaching import BUSY
from lamella.control.storage.conditions import READY
from lamella.control.storage.hearing import measured
from lamella.control.storage.lookup import held
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.orphans import is_nobodys, sharers
from lamella.control.storage.placing import host_of
from lamella.control.storage.pools import add
from lamella.model.errors import LamellaError, Unavailable
from lamella.model.host import Host, HostStatus
from lamella.model.operation import Operation
from lamella.model.requests import Principal
from lamella.model.storage import Pool, PoolStatus, Snapshot, StoragePhase, Volume, VolumeStatus
from lamella.model.storage_bodies import StorageCheck
from lamella.model.storage_report import Orphan, StorageFinding
from lamella.model.storage_requests import CheckStorage, MeasureVolumes, RemoveOrphan, Report
from lamella.store.store import Audit, Store, Transaction

log = logging.getLogger("lamella.control")

# Seconds between two measurements, and the part of a pool that has to come or go to be worth a row.
EVERY = 30.0
WORTH = 0.01


class Inspection:
    """Looks at hosts' storage. ``measure`` goes on from ``open`` to ``close``."""

    def __init__(self, store: Store, operations: Operations, hosts: Hosts) -> None:
        self._store = store
        self._operations = operations
        self._hosts = hosts
        self._task: asyncio.Task[None] | None = None
        operations.add("fsck", self._check)

    async def open(self) -> None:
        self._task = asyncio.create_task(self._measure(), name="measuring volumes")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def check(self, who: Principal, body: StorageCheck, *, wait: float) -> Operation:
        """Compare and, if asked, mend."""

        def write(tx: Transaction) -> Operation:
            tx.audit(Audit(principal=who.name, verb="fsck", subject="storage"))
            arguments = {
                "repair": "yes" if body.repair else "",
                "remove_orphans": "yes" if body.remove_orphans else "",
            }
            return self._operations.intend(tx, who, "default", "fsck", "storage", arguments)

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _check(self, job: Job) -> str:
        hosts, volumes, snapshots, busy = await self._store.read(
            lambda tx: (_hosts(tx), _volumes(tx), list[Snapshot](tx.list("snapshot")), tx.claims(BUSY))
        )
        # Whoever has one open knows that, and does not open it to look at it.
        places = await self._store.read(lambda tx: {volume.id: host_of(tx, volume) for volume in volumes})
        job.report = Report(findings=[_busy(volume) for volume in volumes if volume.id in busy])
        present = self._hosts.present
        orphans: dict[Orphan, StorageFinding] = {}
        seen: dict[Orphan, set[str]] = {}
        for host in hosts:
            if host.id not in present:
                job.report.findings.append(
                    StorageFinding(
                        subject=f"host {host.name}",
                        problem="it is away: its volumes were not looked at",
                        hint="lamella host ls",
                    )
                )
                continue
            here = {volume.id: volume for volume in volumes if places[volume.id] == host.id and volume.id not in busy}
            request = CheckStorage(
                volumes=list(here.values()),
                snapshots=[snapshot for snapshot in snapshots if here.keys() & held(snapshot)],
                known=[volume.id for volume in volumes],
                repair=bool(job.arguments["repair"]),
            )
            report: Report = await ask(present[host.id], request, Report, job.tell)
            for finding in report.findings:
                if finding.orphan is not None:
                    orphans[finding.orphan] = finding
                    seen.setdefault(finding.orphan, set()).add(host.id)
            report.findings = [finding for finding in report.findings if finding.orphan is None]
            add(job.report, report)
        for orphan, finding in orphans.items():
            if await self._look_again(orphan, finding, seen[orphan], remove=bool(job.arguments["remove_orphans"])):
                job.report.findings.append(finding)
        return "storage"

    async def _look_again(self, orphan: Orphan, finding: StorageFinding, by: set[str], *, remove: bool) -> bool:
        """Whether *orphan*, which the hosts *by* have found, is nobody's now, too; it is removed then, if that is asked."""
        hosts, shared, nobodys = await self._store.read(
            lambda tx: (_hosts(tx), sharers(_hosts(tx), _pools(tx)), is_nobodys(tx, orphan))
        )
        others = shared.get(orphan.pool, set()) - by
        present = self._hosts.present
        if not nobodys or others & present.keys():
            return False
        if others:
            away = ", ".join(sorted(host.name for host in hosts if host.id in others))
            finding.hint = f"it stays until {away} is back, which may know it"
        elif remove:
            try:
                await ask(self._hosts.agent(min(by)), RemoveOrphan(orphan=orphan), None)
                finding.mended = True
            except LamellaError as error:
                finding.hint = error.message
        return True

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            for id in self._hosts.present:
                try:
                    await self.measure(id)
                except Unavailable:
                    continue
                except LamellaError as error:
                    log.warning("volumes of %s cannot be measured: %s", id, error)
                except Exception:
                    log.exception("measuring volumes of %s", id)

    async def measure(self, host: str) -> None:
        """Write down what the pools and the named volumes of *host* have and take now."""
        agent = self._hosts.agent(host)
        facts: HostStatus = await agent.facts()
        volumes = await self._store.read(
            lambda tx: [
                volume
                for volume in _volumes(tx)
                if volume.status.host == host
                and volume.spec.owner is None
                and volume.status.phase is StoragePhase.READY
            ]
        )
        seen: dict[str, VolumeStatus] = {}
        if volumes:
            seen = await ask(agent, MeasureVolumes(volumes=volumes), dict[str, VolumeStatus])

        def write(tx: Transaction) -> None:
            for pool in _pools(tx):
                if pool.name in facts.pools and _moved(pool.status, facts.pools[pool.name]):
                    before, pool.status = pool.status.phase, measured(pool, facts.pools[pool.name])
                    after = pool.status.phase
                    if before is not after:
                        why = next((f": {item.message}" for item in pool.status.conditions if item.type == READY), "")
                        record(tx, pool, f"pool.{after}", f"pool {pool.name} is {after}{why}")
                    tx.update(pool)
            known: Host | None = tx.by_id(host)
            if known is not None and _different(known.status.pools, facts.pools):
                known.status.pools = facts.pools
                tx.update(known)
            for id, status in seen.items():
                volume: Volume | None = tx.by_id(id)
                if volume is not None and volume.status.used != status.used:
                    volume.status.used = status.used
                    tx.update(volume)

        await self._store.write(write)


def _busy(volume: Volume) -> StorageFinding:
    problem = f"volume {volume.name} is busy: it was not looked at"
    return StorageFinding(subject=volume.id, problem=problem, hint="lamella fsck again when its operation has ended")


def _hosts(tx: Transaction) -> list[Host]:
    return tx.list("host")


def _pools(tx: Transaction) -> list[Pool]:
    return tx.list("pool")


def _volumes(tx: Transaction) -> list[Volume]:
    return tx.list("volume")


def _different(before: dict[str, PoolStatus], after: dict[str, PoolStatus]) -> bool:
    return before.keys() != after.keys() or any(_moved(before[name], after[name]) for name in after)


def _moved(before: PoolStatus, after: PoolStatus) -> bool:
    """Whether *after* says something else that is worth writing."""
    if (before.capacity, before.features) != (after.capacity, after.features):
        return True
    return abs(before.free - after.free) > WORTH * max(after.capacity, 1)
