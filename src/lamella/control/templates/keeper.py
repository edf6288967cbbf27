"""The keeper of templates: a round whenever something has changed that they follow, and every few seconds.

A round drives every template, fills and empties the pools of copies that wait, and sweeps away what was made for a template and is needed
no more. All that it does follows from rows; what it remembers itself is how often copies are asked for.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec

from lamella.control import capacity
from lamella.control.bulletin import Bulletin
from lamella.control.events import record
from lamella.control.naming import new_suffix
from lamella.control.shares import Share, share_of
from lamella.control.storage.asking import Hosts
from lamella.control.storage.conditions import drop
from lamella.control.storage.keeper import Keeper as Storekeeper
from lamella.control.templates import pooling, rows
from lamella.control.templates.building import Building
from lamella.control.templates.giving_way import WARM, hold_back, send_away, waits
from lamella.control.templates.pooling import Demand, Member, Pool
from lamella.control.templates.recipe import waiting_spec
from lamella.control.templates.steps import AGAIN
from lamella.control.templates.taking import begin_of_template
from lamella.model.errors import LamellaError
from lamella.model.host import Host
from lamella.model.instance import Instance, Phase, Power
from lamella.model.resource import now
from lamella.model.template import Template
from lamella.store.store import Change, Store, Transaction

log = logging.getLogger("lamella.control")

# Seconds between two rounds at least: what changes together is looked at together, and who was given a copy begins first.
TOGETHER = 0.05
# For how many seconds none is made after one could not be, or its host was short of memory.
REST = 60.0
_FOLLOWED = frozenset({"template", "image", "host"})


class _Found(msgspec.Struct, kw_only=True, frozen=True):
    """What a round has found: ids of templates that nobody uses, and of those that are not as they should be; what to do about pools."""

    idle: list[str] = []
    unbuilt: list[str] = []
    pools: pooling.Plan = pooling.Plan()
    sweep: bool = False


class Keeper:
    """*seed* as for :class:`~lamella.control.instances.Instances`."""

    def __init__(self, store: Store, bulletin: Bulletin, storekeeper: Storekeeper, hosts: Hosts, *, seed: str) -> None:
        self._store = store
        self._bulletin = bulletin
        self._seed = seed
        self._building = Building(store, storekeeper, hosts, seed=seed)
        self._wake = asyncio.Event()
        self._demand: dict[str, Demand] = {}
        self._used: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._swept: dict[str, float] = {}
        # Nothing is left of any template: there is nothing to look for until there is one.
        self._clean = False
        self._task: asyncio.Task[None] | None = None
        self._deaf = lambda: None

    async def open(self) -> None:
        self._deaf = self._bulletin.listen(self._heard)
        self._task = asyncio.create_task(self._follow(), name="templates")

    async def close(self) -> None:
        self._deaf()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._building.close()

    def _heard(self, change: Change) -> None:
        if change.kind in _FOLLOWED or (change.kind == "snapshot" and change.resource.spec.memory):
            self._wake.set()
        elif change.kind == "instance":
            self._heard_of(change)

    def _heard_of(self, change: Change) -> None:
        instance: Instance = change.resource
        template, waiting = instance.status.template, change.id in self._waiting
        gone = change.action == "deleted"
        if gone or instance.spec.power is Power.READY:
            # There may be room now.
            self._wake.set()
        if not template or rows.BUILDER in instance.labels:
            return
        if not gone and instance.spec.power is Power.READY:
            made = instance.status.phase is Phase.READY
            if made and not waiting:
                self._waiting.add(change.id)
                took = (change.at - instance.created_at).total_seconds()
                self._demand[template] = self._of(template).made(took)
            return
        self._waiting.discard(change.id)
        if not gone and (waiting or change.action == "created"):
            self._used[template] = time.monotonic()
            self._demand[template] = self._of(template).arrived(self._used[template])
            self._wake.set()

    def _of(self, template: str) -> Demand:
        return self._demand.get(template, Demand())

    async def _follow(self) -> None:
        while True:
            try:
                await self.round()
            except LamellaError as error:
                log.info("templates: %s", error)
            except Exception:
                log.exception("templates")
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(TOGETHER)

    async def round(self) -> None:
        """Look at all of them once, and do what there is to do."""
        found = await self._store.read(self._look)
        for id in found.idle:
            await self._store.write(lambda tx, id=id: _expire(tx, id))
        for id in found.unbuilt:
            self._building.drive(id)
        if found.pools.remove:
            await self._store.write(lambda tx: _send_away(tx, found.pools.remove))
        for template in found.pools.make:
            await self._make(template)
        if found.sweep:
            await self._store.write(rows.sweep)

    def _look(self, tx: Transaction) -> "_Found":
        templates: list[Template] = tx.list("template")
        if not templates and self._clean:
            return _Found()
        idle = [item.id for item in templates if item.spec.idle is not None and self._is_idle(item.id, item.spec.idle)]
        instances: list[Instance] = tx.list("instance")
        left = rows.to_sweep(tx, templates, instances)
        self._clean = not templates and not left
        for id in self._demand.keys() - {item.id for item in templates}:
            del self._demand[id]
        return _Found(
            idle=idle,
            unbuilt=[item.id for item in templates if item.id not in idle and self._building.has_work(tx, item.id)],
            pools=self._plan(tx, templates, instances),
            sweep=self._is_due(left),
        )

    def _is_due(self, left: list[str]) -> bool:
        """Whether one of *left* is to be swept now: what could not be is tried again later, not at once."""
        at = time.monotonic()
        self._swept = {id: tried for id, tried in self._swept.items() if id in left}
        due = any(at - self._swept.get(id, -AGAIN) >= AGAIN for id in left)
        self._swept |= dict.fromkeys(left, at) if due else {}
        return due

    def _is_idle(self, template: str, seconds: float) -> bool:
        # What a former daemon saw, this one does not know: it begins to count when it comes.
        at = time.monotonic()
        return at - self._used.setdefault(template, at) > seconds

    def _plan(self, tx: Transaction, templates: list[Template], instances: list[Instance]) -> pooling.Plan:
        waiting = [item for item in instances if waits(item)]
        if not waiting and not any(item.spec.warm for item in templates):
            return pooling.Plan()
        hosts: dict[str, Host] = {host.id: host for host in tx.list("host")}
        taken = {id: capacity.taken(host, instances) for id, host in hosts.items()}
        at, clock = now(), time.monotonic()
        wanted = {item.id: self._wanted(item, clock) for item in templates}
        pools = pools_of(templates, waiting, wanted, at)

        def fits(host: str, share: Share) -> bool:
            known = hosts.get(host)
            ready = known is not None and known.status.phase == "ready"
            return ready and known is not None and capacity.shortage(known, taken[host], share) is None

        return pooling.plan(pools, fits)

    def _wanted(self, template: Template, clock: float) -> int:
        spec = template.spec
        if not template.status.snapshot:
            return 0
        return self._of(template.id).wanted(clock, spec.warm) if spec.by_rate else spec.warm

    async def _make(self, id: str) -> None:
        try:
            await self._store.write(lambda tx: _begin(tx, id, self._seed))
        except LamellaError as error:
            log.info("no copy of template %s is made to wait: %s", id, error)
            await self._store.write(lambda tx, why=error: hold_back(tx, id, why))


def pools_of(templates: list[Template], waiting: list[Instance], wanted: Mapping[str, int], at: datetime) -> list[Pool]:
    """The pools as :func:`~lamella.control.templates.pooling.plan` takes them; those whose template is gone are wanted no more."""
    known = {item.id: item for item in templates}
    members: dict[str, list[Instance]] = {item.id: [] for item in templates}
    for instance in waiting:
        members.setdefault(instance.status.template, []).append(instance)
    pools: list[Pool] = []
    for id, theirs in members.items():
        template = known.get(id)
        if template is None:
            gone = tuple(Member(id=item.id, ready=False, sound=False) for item in theirs)
            pools.append(Pool(template=id, project="", host="", wanted=0, share=Share(), members=gone, open=False))
            continue
        recipe = template.status.recipe or template.spec
        pools.append(
            Pool(
                template=id,
                project=template.project,
                host=template.status.host or "",
                wanted=wanted.get(id, 0),
                share=share_of(waiting_spec(template.name, recipe)),
                members=tuple(_member(item, template) for item in theirs),
                open=not _held_back(template, at) and not any(item.status.phase is Phase.FAILED for item in theirs),
            )
        )
    return pools


def _member(instance: Instance, template: Template) -> Member:
    beginning = instance.status.beginning
    of_now = beginning is not None and beginning.snapshot == template.status.snapshot
    sound = of_now and instance.status.phase is not Phase.FAILED
    return Member(id=instance.id, ready=instance.status.phase is Phase.READY, sound=sound)


def _held_back(template: Template, at: datetime) -> bool:
    held = next((item for item in template.status.conditions if item.type == WARM and not item.status), None)
    return held is not None and held.since is not None and at < held.since + timedelta(seconds=REST)


def _begin(tx: Transaction, id: str, seed: str) -> None:
    template: Template | None = tx.by_id(id)
    if template is None:
        return
    recipe = template.status.recipe or template.spec
    spec = waiting_spec(template.name, recipe)
    name = f"{template.name[:40]}-{new_suffix()}"
    made = begin_of_template(tx, template.project, name, {}, spec, seed=seed)
    record(tx, made, "instance.created", f"{made.name} is made to wait as a copy of template {template.name}")
    if any(item.type == WARM for item in template.status.conditions):
        template.status.conditions = drop(template.status.conditions, WARM)
        tx.update(template)


def _send_away(tx: Transaction, ids: tuple[str, ...]) -> None:
    for id in ids:
        instance: Instance | None = tx.by_id(id)
        # It may have been taken since.
        if instance is None or not waits(instance):
            continue
        if instance.status.phase is Phase.FAILED:
            failed = next((item for item in instance.status.conditions if not item.status), None)
            hold_back(
                tx,
                instance.status.template,
                LamellaError(
                    f"a copy could not be made: {failed.message if failed is not None else 'nobody knows why'}"
                ),
            )
        send_away(tx, instance, "it is not wanted any more")


def _expire(tx: Transaction, id: str) -> None:
    template: Template | None = tx.by_id(id)
    if template is not None:
        record(tx, template, "template.expired", f"nobody began from template {template.name}: it is removed")
        rows.remove(tx, template)
