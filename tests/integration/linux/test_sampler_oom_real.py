"""A process that grows beyond its own group's limit is killed by that limit, and not for want of memory on the host."""

import asyncio
import subprocess
import sys
import time

import pytest

from lamella.host.compute.driver import Limits
from lamella.host.linux.cgroup import Cgroups
from lamella.host.linux.pressure import PROC
from lamella.host.measure.promise import Promise, Watched
from lamella.host.measure.sampler import Sampler
from lamella.model.judgement import Judgement, Verdict

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

LIMIT = 32 << 20


async def test_who_is_killed_by_its_own_limit_was_given_its_floor(cgroups: Cgroups) -> None:
    if "" not in cgroups.trees or not (PROC / "memory").exists():
        pytest.skip("this host has no tree of version 2, or its kernel counts no pressure")
    group = cgroups.group("hog")
    group.create(Limits(memory=LIMIT))
    promise = Promise(memory_floor=LIMIT // 2, memory_ceiling=LIMIT)
    told: list[str] = []
    sampler = Sampler(
        lambda: cgroups,
        lambda: [Watched(id="hog", promise=promise)],
        lambda id, type, message: told.append(message),
        windows={"60s": 60},
    )

    def line(guarantee: bool) -> Judgement:
        return next(each for each in sampler.judgements("hog", promise) if each.guarantee is guarantee)

    script = "".join(f"echo $$ > {file}; " for file in group.procs_files())
    words = ["sh", "-c", script + 'exec "$@"', "sh", sys.executable, "-c", "x = bytearray(128 << 20); input()"]
    sampling = asyncio.create_task(sampler.run())
    try:
        began, killed = time.monotonic(), 0
        while line(True).verdict is Verdict.NOT_MEASURED or time.monotonic() < began + 12:
            assert time.monotonic() < began + 90
            hog = await asyncio.create_subprocess_exec(*words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
            async with asyncio.timeout(60):
                killed += await hog.wait() == -9
            await asyncio.sleep(0.3)
        assert killed
        assert group.oom_kills() >= killed
        floor, ceiling = line(True), line(False)
        assert floor.verdict is Verdict.KEPT, floor
        assert "0 processes killed for want of memory on the host" in floor.windows[0].evidence
        assert ceiling.verdict is Verdict.KEPT, ceiling
        assert "; 0 processes killed" not in ceiling.windows[0].evidence
        assert told == []
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
