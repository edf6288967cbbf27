"""The host's processors, shared out: what each group should have is computed, compared with the kernel, and written where it differs."""

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence

from lamella.host.compute.driver import Home
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.cgroup_seat import CORE, Group, Seat, set_affinity
from lamella.host.processors.sharing import Promise, share_out
from lamella.model.assignment import Assignment
from lamella.model.contract import GUARANTEE, LIMIT, Mechanism
from lamella.model.cpulist import format_list
from lamella.model.errors import Unsupported
from lamella.model.instance import Power

log = logging.getLogger("lamella.host.processors")


class Processors:
    """Knows what every instance of this host was promised. Nothing is written on a host where nobody was promised anything, but once, after
    a start: a daemon that was killed may have left seats that nobody needs any more."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._cpus = sorted(os.sched_getaffinity(0))
        self._promises: dict[str, Promise] = {}
        self._turn = asyncio.Lock()
        self._seated = True

    async def use(self, asked: Iterable[Assignment]) -> None:
        """From now on these are the host's instances."""
        self._promises = {one.instance.id: promise_of(one) for one in asked}
        await self.settle()

    async def settle(self) -> None:
        """Write what differs from what everybody should have: after a group was made, or somebody else may have written."""
        async with self._turn:
            needed = any(one.guarantee or one.cpus for one in self._promises.values())
            if needed or self._seated:
                try:
                    await blocking(self._write)
                except OSError as error:
                    log.warning("the processors are not shared out as they should be: %s", error)
                else:
                    self._seated = needed

    async def spread(self, id: str, threads: Sequence[int]) -> None:
        """Put the virtual processors of *id*, by their *threads*, each on one of the CPUs that are its own."""
        promise = self._promises.get(id)
        if promise is not None and promise.cpus:
            for number, thread in enumerate(threads):
                set_affinity(thread, {promise.cpus[number % len(promise.cpus)]})

    async def mechanisms(self, id: str) -> list[Mechanism]:
        """What holds the promises made to *id*, as the kernel has it now; nothing where it was promised nothing."""
        promise = self._promises.get(id)
        if promise is None or not (promise.guarantee or promise.cpus):
            return []
        return await blocking(self._read, promise)

    def _write(self) -> None:
        cgroups = self._cgroups()
        if cgroups is None:
            return
        present = cgroups.ids()
        # Who has no promise and does not run has no part of what is left.
        promises = [one for one in self._promises.values() if one.cpus or one.id in present]
        shares = share_out(promises, present - self._promises.keys(), self._cpus)
        seats = [(name, seat) for name, seat in shares.seats.items() if name in present]
        own = {one.id for one in self._promises.values() if one.cpus}
        # Those that have CPUs of their own come last: the others have left by then.
        for name, seat in [*sorted(seats, key=lambda item: item[0] in own), ("", shares.whole)]:
            self._take(cgroups, name, seat)

    def _take(self, cgroups: Cgroups, name: str, seat: Seat) -> None:
        try:
            self._group(cgroups, name).take(seat)
        except OSError as error:
            log.warning("the kernel refuses %s to group %s: %s", seat, name, error)

    def _read(self, promise: Promise) -> list[Mechanism]:
        cgroups = self._cgroups()
        if cgroups is None:
            return []
        held = self._group(cgroups, promise.id).read()
        found: list[Mechanism] = []
        if promise.guarantee and held.weight is not None:
            together = sum(self._group(cgroups, name).read().weight or 0 for name in cgroups.ids())
            found.append(
                Mechanism(
                    name=f"{GUARANTEE}cpu",
                    value=f"{held.weight} of the {together} that all here weigh together, on {len(self._cpus)} CPUs",
                    evidence=held.weight_file,
                    in_force=held.weight * len(self._cpus) * CORE >= promise.guarantee * together * 0.99,
                )
            )
        if promise.cpus:
            found.append(
                Mechanism(
                    name=f"{LIMIT}cpuset",
                    value=f"CPUs {format_list(held.cpus)}, memory of nodes {format_list(held.nodes)}",
                    evidence=held.cpus_file or "no cpuset hierarchy: its threads are told one by one",
                    in_force=tuple(held.cpus) == promise.cpus,
                )
            )
        return found

    def _group(self, cgroups: Cgroups, name: str) -> Group:
        trees = {controller: tree / cgroups.mark for controller, tree in cgroups.trees.items()}
        return Group.find(cgroups.version, trees, name)

    def _cgroups(self) -> Cgroups | None:
        try:
            return Cgroups(ROOT, self._home.mark)
        except Unsupported:
            return None


def promise_of(asked: Assignment) -> Promise:
    """What *asked* promises; its own CPUs only while it shall run."""
    instance = asked.instance
    rests = instance.spec.power is Power.STOPPED or instance.deleted_at is not None
    return Promise(
        id=instance.id,
        guarantee=0 if rests else instance.spec.cpu_guarantee or 0,
        priority=instance.spec.priority,
        cpus=() if rests else tuple(instance.status.cpus),
        nodes=() if rests else tuple(instance.status.nodes),
    )
