"""What is kept of an instance that does not run, and of what was told of it; plain files stand for a group."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lamella.host.linux.cgroup import Cgroups
from lamella.host.measure.promise import Promise, Watched
from lamella.host.measure.sampler import Sampler
from lamella.host.measure.told import Told

PROMISE = Promise(cpu_ceiling=1.0)
LINE = ("cpu", False)


async def test_a_pause_keeps_what_was_measured_and_an_end_does_not(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    group = tmp_path / "mark" / "one"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 1000\n")
    here: list[Watched] = []
    sampler = Sampler(lambda: Cgroups(tmp_path, "mark"), lambda: here, lambda id, type, message: None)

    async def look(*, running: bool, times: int = 1) -> None:
        here[:] = [Watched(id="one", promise=PROMISE, running=running)]
        for _ in range(times):
            await sampler.look()

    def measured() -> float:
        [judgement] = sampler.judgements("one", PROMISE)
        return judgement.windows[0].measured

    def kept() -> float:
        known = sampler._measured["one"]  # pyright: ignore[reportPrivateUsage]
        return known.history.seconds.over(0, 1 << 40).seconds

    await look(running=False)
    assert sampler.read("one") is None, "who never ran was never read"
    await look(running=True, times=5)
    before = kept()
    assert before > 0
    await look(running=False)
    assert measured() == 0, "nothing is said of who rests"
    await look(running=True)
    assert kept() == before, "what befell it while it rested is not known"
    await look(running=True)
    assert kept() > before
    here.clear()
    await sampler.look()
    await look(running=True)
    assert kept() == 0, "it is another one"


def test_what_was_told_is_written_by_any_thread(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    told = Told(file)

    def work(number: int) -> None:
        told.note(f"i{number}", LINE, broken=True)
        if number % 2:
            told.forget(f"i{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    after = Told(file)
    assert [number for number in range(200) if after.lines(f"i{number}")] == list(range(0, 200, 2))


def test_who_was_removed_while_nobody_looked_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    told = Told(file)
    for id in ("gone", "here"):
        told.note(id, LINE, broken=True)
    Told(file).keep({"here", "another"})
    assert Told(file).lines("gone") == []
    assert Told(file).lines("here") == [LINE]
