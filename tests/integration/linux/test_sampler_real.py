"""The sampler over groups of the test's own: somebody whose guarantee is taken, and given back, as this machine's kernel counts it."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from spinning import spinner

from lamella.host.compute.driver import Limits
from lamella.host.linux.cgroup import Cgroups
from lamella.host.linux.pressure import PROC
from lamella.host.measure.promise import Promise, Watched
from lamella.host.measure.sampler import Sampler
from lamella.model.judgement import Judgement, Verdict

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

# Little enough that any machine has it, whatever else it does.
GUARANTEE = 0.05
# Windows as short as anything is judged over, so that a test sees them pass.
WINDOWS = {"15s": 15, "60s": 60}


def weigh(cgroups: Cgroups, id: str, least: bool) -> None:
    """The least or the most of the processors that the kernel lets a group have beside its siblings."""
    if cgroups.version == 2:
        (cgroups.group(id).path("cpu") / "cpu.weight").write_text("1" if least else "10000")
    else:
        (cgroups.group(id).path("cpu") / "cpu.shares").write_text("2" if least else "262144")


def on_one_processor(cgroups: Cgroups, id: str, cpu: int) -> None:
    (cgroups.group(id).path("cpuset") / "cpuset.cpus").write_text(str(cpu))


async def until(check: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def test_a_guarantee_that_is_taken_is_told_broken_once_and_kept_when_it_is_back(
    cgroups: Cgroups, tmp_path: Path
) -> None:
    if "" not in cgroups.trees or not (PROC / "cpu").exists():
        pytest.skip("this host has no tree of version 2, or its kernel counts no pressure")
    cpu = min(os.sched_getaffinity(0))
    for id in ("victim", "hog", "idle"):
        cgroups.group(id).create(Limits(memory=1 << 30))
        on_one_processor(cgroups, id, cpu)
    promise = Promise(cpu_guarantee=GUARANTEE, cpu_ceiling=2.0, memory_ceiling=1 << 30, memory_floor=1 << 20)
    told: list[tuple[str, str]] = []
    sampler = Sampler(
        lambda: cgroups,
        lambda: [Watched(id=id, promise=promise) for id in ("victim", "idle")],
        lambda id, type, message: told.append((id, type)) if message.startswith("cpu (guaranteed)") else None,
        windows=WINDOWS,
        memory=tmp_path / "broken.json",
    )

    def verdict(id: str, line: tuple[str, bool]) -> Judgement:
        return next(each for each in sampler.judgements(id, promise) if (each.subject, each.guarantee) == line)

    assert verdict("victim", ("cpu", True)).verdict is Verdict.NOT_MEASURED
    victims, hogs = [spinner(cgroups.group("victim").procs_files())], list[subprocess.Popen[bytes]]()
    weigh(cgroups, "victim", least=True)
    weigh(cgroups, "hog", least=False)
    task = asyncio.create_task(sampler.run())
    try:
        hogs += [spinner(cgroups.group("hog").procs_files()) for _ in range(2)]
        await until(lambda: ("victim", "contract.broken") in told)
        broken = verdict("victim", ("cpu", True))
        assert broken.since is not None
        assert "missed" in broken.windows[0].evidence
        # A machine that is busy may leave a gap: then it takes a moment until there is enough to judge.
        await until(lambda: verdict("victim", ("cpu", True)).verdict is Verdict.BROKEN)
        await until(lambda: verdict("idle", ("cpu", True)).verdict is Verdict.KEPT)
        await until(lambda: verdict("victim", ("cpu", False)).verdict is Verdict.KEPT)
        await until(lambda: verdict("victim", ("memory", True)).verdict is Verdict.KEPT)
        assert sampler.read("victim") is not None
        for hog in hogs:
            hog.kill()
            hog.wait()
        weigh(cgroups, "victim", least=False)
        weigh(cgroups, "hog", least=True)
        await until(lambda: ("victim", "contract.kept") in told)
        await until(lambda: verdict("victim", ("cpu", True)).verdict is Verdict.KEPT)
        # A busy machine may take it once more while we look.
        first = told[: told.index(("victim", "contract.kept")) + 1]
        assert first == [("victim", "contract.broken"), ("victim", "contract.kept")]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for one in [*victims, *hogs]:
            one.kill()
            one.wait()
    # With the sampler dead, nothing is said to be kept any more.
    nothing = {Verdict.NOT_MEASURED}
    await until(
        lambda: {each.verdict for item in sampler.judgements("idle", promise) for each in item.windows} == nothing
    )
    assert {item.verdict for item in sampler.judgements("idle", promise)} == nothing
