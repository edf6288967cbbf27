"""The policy of this host, kept: who takes part in KSM, which pages are set apart, and what is saved by it.

Nobody takes part before everybody who must not has left, so pages are never shared across projects, not for a moment either.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from lamella.host.compute.driver import ComputeDriver, Home, MergesPages
from lamella.host.facts import boot_id
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.sharing import figures, pages
from lamella.host.sharing.settings import Settings
from lamella.host.sharing.taking import Machine, participants
from lamella.model.assignment import Assignment, Assignments
from lamella.model.contract import Mechanism
from lamella.model.errors import LamellaError, Unsupported
from lamella.model.host import Capability, HostSpec, SamePages
from lamella.model.instance import Instance, Isolation
from lamella.model.quantity import format_size
from lamella.model.sharing import Sharing
from lamella.model.sizes import DEFAULT_MEMORY

log = logging.getLogger("lamella.host.sharing")

# In seconds: how often machines that came or went are looked at, while any may take part.
WATCH = 10.0

Assigned = Callable[[], list[tuple[Assignment, ComputeDriver]]]
Taking = list[tuple[Machine, MergesPages]]


def settings_of(home: Home) -> Settings:
    """What the layer at *home* changed of this host's memory management."""
    return Settings(home.state / "host-settings.json", boot_id())


class SharingWing:
    """*assigned* is every instance of this host with its driver."""

    def __init__(self, home: Home, assigned: Assigned, settings: Settings | None = None) -> None:
        self._home = home
        self._assigned = assigned
        self._settings = settings_of(home) if settings is None else settings
        self._policy: HostSpec | None = None
        self._wake = asyncio.Event()
        self._same: list[str] = []
        self._huge: list[str] = []
        self._projects: list[str] = []

    async def open(self) -> list[Capability]:
        """What this host can share and set apart."""
        return await blocking(pages.capabilities, self._settings)

    async def use(self, news: Assignments) -> None:
        """Take the policy of *news*, when it has one. Pages are set apart before instances that may want them are begun."""
        if news.policy is not None and news.policy != self._policy:
            before, self._policy = self._policy, news.policy
            if before is None or before.huge_pages != news.policy.huge_pages:
                self._huge = await blocking(pages.use_huge_pages, self._settings, news.policy.huge_pages)
                for sentence in self._huge:
                    log.warning("%s", sentence)
            self._wake.set()

    async def watch(self) -> None:
        """Who takes part is what the policy says, until cancelled."""
        while True:
            idle = self._policy is None or (self._policy.ksm in (None, SamePages.OFF) and not self._same)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if idle else WATCH):
                    await self._wake.wait()
            self._wake.clear()
            if self._policy is None:
                continue
            try:
                told, self._same = self._same, await self._share(self._policy.ksm)
            except Exception as error:
                log.exception("equal pages")
                told, self._same = self._same, [f"equal pages: {error}"]
            for sentence in self._same:
                if sentence not in told:
                    log.warning("%s", sentence)

    async def _share(self, policy: SamePages | None) -> list[str]:
        """Returns sentences on what is not so."""
        running, problems = await self._running()
        wanted = participants(policy, [machine for machine, _ in running])
        taking = {machine.id for machine, _ in running if machine.merged}
        for machine, driver in running:
            if machine.id in taking - wanted:
                said = await _ask(driver, machine, on=False)
                problems += said
                taking -= set() if said else {machine.id}
        # Whoever could not be asked may take part, and for whom is not known.
        stays = bool(problems) and policy is SamePages.SAME_PROJECT
        problems += await blocking(pages.use_same_pages, self._settings, policy)
        for machine, driver in running:
            if machine.id in wanted - taking and not stays:
                said = await _ask(driver, machine, on=True)
                problems += said
                taking |= set() if said else {machine.id}
        self._projects = sorted({machine.project for machine, _ in running if machine.id in taking})
        return problems

    async def _running(self) -> tuple[Taking, list[str]]:
        """Machines that can take part, with whether they do; and sentences on those that did not say."""

        async def one(asked: Assignment, driver: MergesPages) -> tuple[Machine, MergesPages] | str | None:
            instance = asked.instance
            try:
                merged = await driver.merged(instance.id)
            except LamellaError as error:
                return f"whether {instance.name} takes part in KSM is not known: {error.message}"
            if merged is None:
                return None
            memory = instance.spec.memory or DEFAULT_MEMORY.get(instance.spec.isolation, 0)
            return Machine(id=instance.id, project=instance.project, memory=memory, merged=merged), driver

        able = [
            one(asked, driver)
            for asked, driver in self._assigned()
            if isinstance(driver, MergesPages) and _can_take_part(asked.instance)
        ]
        found = await asyncio.gather(*able)
        return [item for item in found if isinstance(item, tuple)], [item for item in found if isinstance(item, str)]

    # --- what it comes to

    async def consolidation(self) -> Sharing:
        """What instances take now, and would take alone."""
        ids = [asked.instance.id for asked, _ in self._assigned()]
        return await blocking(self._figures, ids, self._projects, [*self._huge, *self._same])

    def _figures(self, ids: list[str], projects: list[str], refused: list[str]) -> Sharing:
        try:
            groups = Cgroups(ROOT, self._home.mark)
        except Unsupported:
            return Sharing(ksm=pages.same_pages(self._settings), projects=projects, refused=refused)
        count = alone = together = merged = 0
        for id in ids:
            processes = [figures.read(pid) for pid in groups.group(id).pids()]
            count += bool(processes)
            alone += figures.alone(processes)
            together += figures.together(processes)
            merged += sum(one.merged for one in processes)
        return Sharing(
            instances=count,
            alone=alone,
            together=together,
            merged=merged,
            ksm=pages.same_pages(self._settings),
            projects=projects,
            refused=refused,
        )

    async def mechanisms(self, asked: Assignment, driver: ComputeDriver) -> list[Mechanism]:
        """Whether it has its pages for itself, and which are set apart for it, for its contract."""
        if not isinstance(driver, MergesPages) or not _is_machine(asked.instance):
            return []
        merged = await driver.merged(asked.instance.id)
        if merged is None:
            return []
        memory = await blocking(self._memory, asked.instance.id)
        value = "its own: equal pages of others are never mapped from the same memory"
        if merged:
            others = "any machine" if self._policy and self._policy.ksm is SamePages.ALL else "machines of its project"
            value = f"equal pages are one with those of {others}: {format_size(memory.merged)} of them are"
        value += (
            f"; it takes {format_size(figures.together([memory]))}, and alone {format_size(figures.alone([memory]))}"
        )
        found = [
            Mechanism(
                name="memory pages",
                value=value,
                evidence="QMP query-memdev, /proc/PID/ksm_merging_pages",
                in_force=not merged,
            )
        ]
        if (size := asked.instance.spec.huge_pages) is not None:
            found.append(
                Mechanism(
                    name="huge pages",
                    value=f"of {format_size(size)}, {format_size(memory.huge)} of them in use",
                    evidence="/proc/PID/smaps_rollup Hugetlb",
                    in_force=memory.huge > 0,
                )
            )
        return found

    def _memory(self, id: str) -> figures.Memory:
        """That of its largest process, QEMU."""
        pids = Cgroups(ROOT, self._home.mark).group(id).pids()
        return max(
            (figures.read(pid) for pid in pids), key=lambda one: one.proportional + one.huge, default=figures.Memory()
        )


def _is_machine(instance: Instance) -> bool:
    return instance.spec.isolation is not Isolation.CONFIDENTIAL


def _can_take_part(instance: Instance) -> bool:
    """Memory that the host cannot read has no equal pages, and huge ones are not looked at."""
    return _is_machine(instance) and instance.spec.huge_pages is None


async def _ask(driver: MergesPages, machine: Machine, *, on: bool) -> list[str]:
    try:
        await driver.merge(machine.id, on)
    except LamellaError as error:
        return [f"machine {machine.id} {'does not take part in' if on else 'has not left'} KSM: {error.message}"]
    return []
