"""The replications of one host: what control asks of them, the tasks that carry them on, and the fences around their volumes."""

import asyncio
import logging
from contextlib import suppress

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage.creating import Creating
from lamella.host.storage.driver import Node
from lamella.host.storage.parts import Parts
from lamella.host.storage.records import MadeVolume
from lamella.host.storage.replication import promotion
from lamella.host.storage.replication.cycle import Cycles
from lamella.host.storage.replication.guard import refuse
from lamella.host.storage.replication.journal import Fence, Journal, Journals
from lamella.host.storage.replication.paired import Pair
from lamella.host.storage.replication.plan import status_of
from lamella.host.storage.replication.server import Server
from lamella.host.storage.requests import Tell
from lamella.host.storage.snapshots import Snapshots
from lamella.model.errors import Conflict, Internal, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.replication import ReplicationMode, ReplicationPhase, ReplicationStatus
from lamella.model.replication_requests import EndReplication, ObserveReplications, Promote, Replicate
from lamella.model.resource import Condition, now
from lamella.model.storage import KeyWrap, Volume, VolumeForm, VolumeStatus

log = logging.getLogger("lamella.host.storage")


class Replications:
    """Answers Replicate, ObserveReplications, Promote and EndReplication."""

    def __init__(self, parts: Parts, creating: Creating, snapshots: Snapshots) -> None:
        self._parts = parts
        self._creating = creating
        self._snapshots = snapshots
        self.journals = Journals(parts.home)
        self._of: dict[str, Cycles | Pair] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        parts.may_open.append(self.journals.check)
        parts.kept.append(self._kept)
        parts.requests.guard(lambda request: refuse(request, [one.journal for one in self._of.values()]))
        parts.stacks.over = self._over
        parts.requests.serve(Replicate, self.replicate)
        parts.requests.serve(ObserveReplications, self.observe)
        parts.requests.serve(Promote, self.promote)
        parts.requests.serve(EndReplication, self.end)

    async def open(self) -> None:
        """Know what was written down; a promotion that was cut off before it was decided is taken back."""
        for id, journal in (await blocking(self.journals.of.all, Journal)).items():
            self._of[id] = one = self._carrier(journal)
            if isinstance(one, Pair):
                one.server.adopt()
            if journal.promoted_at is None:
                await blocking(self.journals.fences.forget, journal.source.id)
            else:
                await blocking(self.journals.fences.forget, journal.target.id)

    def start(self) -> None:
        """Carry on with everything, when the pools can be used."""
        for id in self._of:
            self._run(id)

    async def close(self) -> None:
        for id in tuple(self._tasks):
            await self._rest(id)

    # --- asked

    async def replicate(self, request: Replicate, tell: Tell) -> ReplicationStatus:
        """:class:`Replicate`.

        :raise Unsupported: when the volume or a pool is not made for it. :raise Conflict: when it is replicated already.
        """
        replication, source, target = request.replication, request.source, request.target
        known = self._of.get(replication.id)
        if known is None:
            self._check(source, target)
            journal = Journal(replication=replication, source=source, target=target)
            if replication.spec.mode is ReplicationMode.SYNC:
                if await self._parts.runs(source):
                    raise Conflict(f"{source.name} is the own disk of an instance that runs", hint="stop it first")
                journal.degraded_since, journal.degraded_why = now(), "there is no whole copy yet"
            await blocking(self.journals.fences.write, target.id, _replica_of(replication.id, source, target))
            await blocking(self.journals.of.write, replication.id, journal)
            self._of[replication.id] = known = self._carrier(journal)
        else:
            await self._rest(replication.id)
            journal = known.journal
            journal.replication, journal.source, journal.target = replication, source, target
            await blocking(self.journals.of.write, replication.id, journal)
        self._run(replication.id)
        return self._status(known)

    def _check(self, source: Volume, target: Volume) -> None:
        if source.spec.form is not VolumeForm.BLOCK:
            raise Unsupported(f"volume {source.name} is a directory", hint="volumes of form block are replicated")
        if source.spec.encryption is KeyWrap.PASSPHRASE:
            raise Unsupported(
                f"the key of {source.name} is kept by a passphrase, and a replica needs one of its own",
                hint="lamella volume rekey with a key file or a TPM",
            )
        if source.spec.pool == target.spec.pool:
            raise Conflict(f"{source.name} is in pool {target.spec.pool} itself", hint="name another pool")
        for one in self._of.values():
            if one.journal.promoted_at is None and one.journal.source.id == source.id:
                raise Conflict(f"{source.name} is replicated already", hint="lamella replication ls")

    async def observe(self, request: ObserveReplications, tell: Tell) -> dict[str, ReplicationStatus]:
        """:class:`ObserveReplications`."""
        return {id: self._status(self._of[id]) for id in request.ids if id in self._of}

    def _status(self, one: Cycles | Pair) -> ReplicationStatus:
        status = status_of(one.journal, now(), failing=one.failing, hint=one.hint)
        if isinstance(one, Pair) and status.phase is not ReplicationPhase.PROMOTED:
            degraded = one.journal.degraded_since
            status.phase = (
                ReplicationPhase.SEEDING
                if not one.journal.seeded
                else ReplicationPhase.RESYNCING
                if one.resyncing
                else ReplicationPhase.DEGRADED
                if degraded is not None
                else ReplicationPhase.CURRENT
            )
            status.worst, status.last = None, degraded if one.journal.seeded else None
            status.rpo = 0.0 if degraded is None else (now() - degraded).total_seconds()
            if not one.journal.seeded:
                status.rpo = status.degraded_since = None
            elif degraded is not None and not status.conditions:
                why = one.journal.degraded_why
                status.conditions = [Condition(type="Current", status=False, reason=status.phase.value, message=why)]
        return status

    def _kept(self, id: str) -> list[str]:
        """The snapshots that cycles stand on, of a source or a target."""
        of = (one.journal for one in self._of.values())
        return [
            snapshot
            for journal in of
            if id in (journal.source.id, journal.target.id)
            for snapshot in (journal.base, journal.next, *journal.stale)
            if snapshot
        ]

    async def promote(self, request: Promote, tell: Tell) -> VolumeStatus:
        """:class:`Promote`. A source that nobody has open is copied one last time first: then nothing is lost."""
        one = self._of.get(request.replication.id)
        if one is None:
            raise NotFound(f"this host knows no replication {request.replication.name}")
        journal = one.journal
        if journal.promoted_at is None:
            await self._rest(one.id)
            away = f"volume {request.source.name} was replaced by its replica {request.target.name}"
            fence = Fence(replication=one.id, message=away, hint=f"use {request.target.name}, or remove this one")
            # From here on nobody opens the source; whoever had it open is seen below.
            await blocking(self.journals.fences.write, request.source.id, fence)
            try:
                await self._decide(one, request, tell)
            except BaseException:
                await asyncio.shield(blocking(self.journals.fences.forget, request.source.id))
                self._run(one.id)
                raise
        await blocking(self.journals.fences.forget, journal.target.id)
        return await self._creating.status(request.target)

    async def _decide(self, one: Cycles | Pair, request: Promote, tell: Tell) -> None:
        journal = one.journal
        known = await self._known(one, request.source)
        if isinstance(one, Cycles) and known.reachable and not known.open and not request.force:
            tell("last cycle", 0, 0, "")
            await one.cycle()
            known = msgspec.structs.replace(known, whole=True, newer=await one.newer() or False)
        at = journal.base_at or journal.degraded_since
        age = f"{(now() - at).total_seconds():.0f} s" if at is not None else "none"
        promotion.check(known, name=request.source.name, age=age, force=request.force)
        if isinstance(one, Cycles):
            await one.settle()
        else:
            await one.stop()
            await one.level()
        await self._take_key(request.source, request.target)
        journal.promoted_at = now()
        await blocking(self.journals.of.write, one.id, journal)

    async def _known(self, one: Cycles | Pair, source: Volume) -> promotion.Known:
        journal = one.journal
        open = source.id in self._parts.opened
        try:
            await self._parts.pools.get(source.spec.pool).handle(source.id)
            reachable = True
        except LamellaError:
            reachable = False
        if isinstance(one, Pair):
            behind = journal.degraded_since is not None
            return promotion.Known(
                whole=journal.seeded, reachable=True, open=open and reachable, newer=behind, degraded=behind
            )
        newer: bool | None = None
        if reachable:
            with suppress(LamellaError):
                newer = await one.newer()
        return promotion.Known(whole=bool(journal.base), reachable=reachable, open=open, newer=newer)

    async def _take_key(self, source: Volume, target: Volume) -> None:
        """The target's header opens with the source's key: it is wrapped for the target, too."""
        stacks = self._parts.stacks
        made = MadeVolume(encrypted=True, formatted=True, filled=True, strange=True)
        if stacks.encrypted(source):
            key = await stacks.key(source)
            method = source.spec.encryption or KeyWrap.KEY_FILE
            made.key = await stacks.keys.wrap(target.id, key, method)
        await blocking(self._parts.records.made.write, target.id, made)

    async def end(self, request: EndReplication, tell: Tell) -> None:
        """:class:`EndReplication`."""
        one = self._of.get(request.replication.id)
        if one is None:
            return
        await self._rest(one.id)
        journal = one.journal
        if isinstance(one, Pair):
            try:
                await one.leave()
            except BaseException:
                self._run(one.id)
                raise
        else:
            for id in dict.fromkeys([*journal.stale, journal.base, journal.next]):
                if id:
                    with suppress(NotFound, Unavailable):
                        await one.drop(id)
        if journal.promoted_at is None:
            await self._parts.pools.get(journal.target.spec.pool).delete(journal.target.id)
            await blocking(self.journals.fences.forget, journal.target.id)
            await blocking(self._parts.records.made.forget, journal.target.id)
        await blocking(self.journals.of.forget, one.id)
        del self._of[one.id]

    # --- carried on

    def _carrier(self, journal: Journal) -> Cycles | Pair:
        if journal.replication.spec.mode is ReplicationMode.ASYNC:
            return Cycles(self._parts, self._snapshots, self.journals, journal)
        home = self._parts.home
        server = Server(home.run / "storage", journal.replication.id[-12:], home.mark)
        return Pair(self._parts, self.journals, journal, server)

    def _run(self, id: str) -> None:
        one = self._of.get(id)
        if one is None or id in self._tasks or one.journal.promoted_at is not None:
            return
        task = asyncio.create_task(one.run(), name=f"replication {id}")
        self._tasks[id] = task
        task.add_done_callback(lambda done: self._ended(id, done))

    def _ended(self, id: str, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("replication %s", id, exc_info=error)
            one = self._of.get(id)
            if one is not None:
                one.failing = Internal(f"{type(error).__name__}: {error}").message

    async def _rest(self, id: str) -> None:
        task = self._tasks.pop(id, None)
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _over(self, volume: Volume, node: Node) -> Node:
        """What is opened instead of a volume's own *node*."""
        for one in self._of.values():
            if isinstance(one, Pair) and one.journal.source.id == volume.id:
                return await one.over(node)
        return node


def _replica_of(replication: str, source: Volume, target: Volume) -> Fence:
    return Fence(
        replication=replication,
        message=f"volume {target.name} is the replica of {source.name}",
        hint=f"promote it first: lamella replication promote {source.name}",
    )
