"""Building templates: drives each to being ready, one step at a time, and again after every interruption.

Level-triggered, as the storekeeper is: the step is chosen from the rows as they are now. Several daemons' worth of crashes end the same
way: a builder that was made is warmed up, one whose warm-up was cut off goes, a snapshot that was begun is taken again.
"""

import asyncio
import logging
from contextlib import suppress

from lamella.control.storage.asking import Hosts
from lamella.control.storage.keeper import Keeper
from lamella.control.templates import rows
from lamella.control.templates.steps import Step, View, next_step, why_failed
from lamella.control.templates.warmup import run_warmup
from lamella.model.errors import Internal, LamellaError, Unavailable, error_for
from lamella.model.resource import Condition, now
from lamella.model.storage import Snapshot
from lamella.model.template import Stage, Template
from lamella.store.store import Store, Transaction

log = logging.getLogger("lamella.control")

# For how many seconds a memory may take to be kept until it is looked at again.
KEEPING = 600.0


class Building:
    """One task a template that has something to do. *seed* as for :class:`~lamella.control.instances.Instances`."""

    def __init__(self, store: Store, storekeeper: Keeper, hosts: Hosts, *, seed: str) -> None:
        self._store = store
        self._storekeeper = storekeeper
        self._hosts = hosts
        self._seed = seed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._warming: set[str] = set()
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def has_work(self, tx: Transaction, id: str) -> bool:
        """Whether there is anything to do about the template *id*."""
        view = look(tx, id, id in self._warming)
        return view is not None and (next_step(view, now()) is not None or _unseen(view))

    def drive(self, id: str) -> None:
        """Do what there is to do about the template *id*; what is being done is looked at again afterwards."""
        if id in self._tasks:
            self._again.add(id)
            return
        task = self._tasks[id] = asyncio.create_task(self._drive(id), name=f"template {id}")
        task.add_done_callback(lambda _: self._ended(id))

    def _ended(self, id: str) -> None:
        task = self._tasks.pop(id)
        if not task.cancelled() and task.exception() is not None:
            log.error("template %s", id, exc_info=task.exception())
        elif id in self._again and not task.cancelled() and not self._closed:
            self._again.discard(id)
            self.drive(id)

    async def _drive(self, id: str) -> None:
        while True:
            self._again.discard(id)
            view = await self._store.read(lambda tx: look(tx, id, id in self._warming))
            if view is None:
                return
            step = next_step(view, now())
            if step is None:
                if _unseen(view):
                    await self._store.write(lambda tx: rows.settle(tx, id))
                if id not in self._again:
                    return
                continue
            try:
                if not await self._take(view, step):
                    return
            except LamellaError as error:
                log.info("%s of template %s: %s", step, view.template.name, error)
                await self._failed(id, error)
            except Exception as error:
                log.exception("%s of template %s", step, view.template.name)
                await self._failed(id, Internal(f"{type(error).__name__}: {error}"))

    async def _failed(self, id: str, error: LamellaError) -> None:
        await self._store.write(lambda tx: rows.fail(tx, id, error))

    async def _take(self, view: View, step: Step) -> bool:
        """Take *step*; whether there may be another one at once."""
        id, builder = view.template.id, view.template.status.builder
        if step is Step.BEGIN:
            await self._store.write(lambda tx: rows.begin(tx, id, seed=self._seed))
        elif step is Step.WARM:
            await self._warm(view.template, builder)
        elif step is Step.KEEP:
            return await self._keep(view.template.status.keeping)
        elif step is Step.ADOPT:
            await self._store.write(lambda tx: rows.adopt(tx, id, builder))
        elif step is Step.DROP:
            await self._store.write(lambda tx: rows.drop_builder(tx, id))
        else:
            await self._failed(id, _reason(view))
        return True

    async def _warm(self, template: Template, builder: str) -> None:
        agent = self._hosts.agent(template.status.host)
        self._warming.add(template.id)
        try:
            spec = await self._store.write(lambda tx: rows.warming(tx, template.id, builder))
            if spec is None:
                return
            if spec.warmup:
                await run_warmup(agent, builder, spec)
            await self._store.write(lambda tx: rows.keeping(tx, template.id, builder))
        finally:
            self._warming.discard(template.id)

    async def _keep(self, snapshot: str) -> bool:
        """Have the storekeeper take it; what it says of it is in the row."""
        try:
            await self._storekeeper.settle(snapshot, KEEPING)
        except Unavailable:
            # It is taken when its host is back: the storekeeper sees to that.
            return False
        except LamellaError as error:
            log.info("a template's memory is not kept: %s", error)
        return True


def look(tx: Transaction, id: str, warming: bool) -> View | None:
    """The template *id* with what its next step follows from; ``None`` when it is gone."""
    template: Template | None = tx.by_id(id)
    if template is None:
        return None
    status = template.status
    return View(
        template=template,
        key=rows.wanted_key(tx, template) or ("" if status.host else _first(tx, template)),
        builder=tx.by_id(status.builder) if status.builder else None,
        snapshot=tx.by_id(status.keeping) if status.keeping else None,
        warming=warming,
    )


def _unseen(view: View) -> bool:
    """Whether something was asked of it that nobody has looked at, which asks for no other memory."""
    status = view.template.status
    return bool(view.key) and status.stage is Stage.NONE and status.observed_generation < view.template.generation


def _first(tx: Transaction, template: Template) -> str:
    """A key for one that has no host yet: of the first host that there is."""
    hosts = tx.list("host")
    return rows.wanted_key(tx, template, hosts[0].id) if hosts else ""


def _reason(view: View) -> LamellaError:
    """Why what is being made cannot be."""
    failed: Condition | None = why_failed(view.builder) if view.builder is not None else None
    snapshot: Snapshot | None = view.snapshot
    if snapshot is not None:
        failed = next((item for item in snapshot.status.conditions if not item.status), failed)
    if failed is None:
        return Internal("its memory could not be kept")
    with suppress(KeyError):
        return error_for(failed.reason)(failed.message, hint=failed.hint)
    return Internal(failed.message, hint=failed.hint)
