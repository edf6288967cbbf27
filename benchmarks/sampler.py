"""What the sampler costs: groups with a sleeping process each, read once a second as those of instances are.

The groups are a layer's of the benchmark's own; the processor time is that of the whole process that samples, as the kernel counts it.
"""

import asyncio
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.measure import Row

from lamella.host.compute.driver import Limits
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.measure.promise import Promise, Watched
from lamella.host.measure.sampler import Sampler

SECONDS = 30.0
PROMISE = Promise(
    cpu_guarantee=0.1, cpu_ceiling=1.0, memory_floor=1 << 20, memory_ceiling=1 << 28, rate_in=10**8, rate_out=10**8
)


@contextmanager
def _sleepers(count: int) -> Iterator[tuple[Cgroups, list[str]]]:
    """*count* groups with the limits of an instance and a process each; as many as the machine permits."""
    cgroups = Cgroups(ROOT, f"lamella-bench-{os.getpid()}")
    made: list[subprocess.Popen[bytes]] = []
    try:
        with suppress(OSError):
            for number in range(count):
                group = cgroups.group(f"g{number}")
                group.create(Limits(cpu=1000, memory=1 << 28, pids=64))
                process = subprocess.Popen(["sleep", "100000"])
                made.append(process)
                for file in group.procs_files():
                    file.write_text(str(process.pid))
        yield cgroups, [f"g{number}" for number in range(len(made))]
    finally:
        for process in made:
            process.kill()
        for process in made:
            process.wait()
        cgroups.remove()


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rows(instances: int) -> list[Row]:
    with _sleepers(instances) as (cgroups, ids):
        watched = [Watched(id=id, promise=PROMISE, links=("lo", "lo")) for id in ids]
        sampler = Sampler(
            lambda: cgroups, lambda: watched, lambda id, type, message: None, net=lambda: Path("/proc/self/net/dev")
        )

        async def measure() -> tuple[float, float]:
            task = asyncio.create_task(sampler.run())
            await asyncio.sleep(15)  # the first readings, and until everything is judged
            began, before = time.monotonic(), _used()
            await asyncio.sleep(SECONDS)
            used, passed = _used() - before, time.monotonic() - began
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return used, passed

        used, passed = asyncio.run(measure())
        measured = sum(sampler.judgements(id, PROMISE)[0].windows[0].measured > passed / 2 for id in ids)
    share = used / passed
    what = f"sampler, {len(ids)} groups at 1 Hz ({measured} measured all the time), share of a core"
    return [Row(what, f"{share:.2%}", None, share, "5 %", "2 %")]
