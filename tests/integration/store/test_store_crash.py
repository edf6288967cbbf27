"""Death at any moment: what was acknowledged is there, what was not is there wholly or not at all, the log has no gap."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from store_actors import instance, volume

from lamella.model.errors import Unavailable
from lamella.store.database import open_store
from lamella.store.store import Change, Store

ACTORS = str(Path(__file__).with_name("store_actors.py"))
ROUNDS = 6


async def log(store: Store) -> list[Change]:
    changes: list[Change] = []
    while batch := await store.changes(len(changes)):
        changes.extend(batch)
    return changes


async def names_of_whole_pairs(store: Store) -> set[str]:
    """Every name of which all effects are there; fails on one of which only some are."""
    instances = {item.name: item for item in (await store.list("instance", limit=10_000)).items}
    volumes = {item.name: item.id for item in (await store.list("volume", limit=10_000)).items}
    claims = await store.read(lambda tx: tx.claims("address"))
    audits: Any = await store.read(lambda tx: tx.session.all("SELECT subject FROM audit"))  # type: ignore[attr-defined]
    pairs = {name: item for name, item in instances.items() if not name.startswith("old-")}
    assert set(pairs) == set(volumes) == set(claims) == {row[0] for row in audits}
    assert all(item.status.volume == volumes[name] and claims[name] == item.id for name, item in pairs.items())
    return set(pairs)


async def check_log(store: Store) -> None:
    changes = await log(store)
    assert [change.revision for change in changes] == list(range(1, await store.revision() + 1))
    last = {change.id: change for change in changes}
    for kind in ("instance", "volume"):
        there = (await store.list(kind, limit=10_000)).items
        logged = [c.resource for c in last.values() if c.kind == kind and c.action != "deleted"]
        assert sorted(there, key=lambda r: r.id) == sorted(logged, key=lambda r: r.id)


def test_a_writer_killed_at_random_moments_loses_nothing_that_it_acknowledged(url: str) -> None:
    acknowledged: dict[str, int] = {}
    for number in range(ROUNDS):
        actor = subprocess.Popen(
            [sys.executable, ACTORS, "pairs", url, f"r{number}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert actor.stdout is not None and actor.stdout.readline() == "open\n"
        # In the first rounds it dies young.
        time.sleep(random.uniform(0, 0.05 + 0.1 * number))
        actor.kill()
        out, _ = actor.communicate(timeout=90)
        assert actor.returncode == -signal.SIGKILL
        for line in out.splitlines(keepends=True):
            if line.endswith("\n"):
                name, revision = line.split()
                acknowledged[name] = int(revision)

    async def verify() -> None:
        store = open_store(url)
        await store.open()
        names = await names_of_whole_pairs(store)
        assert acknowledged and set(acknowledged) <= names
        # Four tasks had one each under way at most, in each round.
        assert len(names) <= len(acknowledged) + 4 * ROUNDS
        for name, revision in acknowledged.items():
            assert (await store.get("instance", "default", name)).revision == revision
        await check_log(store)
        await store.close()

    asyncio.run(verify())


def test_death_at_every_statement_leaves_all_or_nothing(url: str) -> None:
    out = subprocess.run(
        [sys.executable, ACTORS, "each_step", url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    ).stdout.splitlines()
    committed: dict[str, bool] = {}
    for line in out:
        if line.startswith("step "):
            step = line.removeprefix("step ")
            committed[step] = False
        elif line == "committed":
            committed[step] = True
    assert out[-1] == "alive"
    # Begin, the newest revision, and the change's own: the last two died after the commit, or not at all.
    assert len(committed) > 15 and list(committed.values()).count(True) == 2

    async def verify() -> None:
        store = open_store(url)
        await store.open()
        assert await names_of_whole_pairs(store) == {f"new-{step}" for step, done in committed.items() if done}
        old = {item.name for item in (await store.list("instance")).items if item.name.startswith("old-")}
        assert old == {f"old-{step}" for step, done in committed.items() if not done}
        assert set(await store.read(lambda tx: tx.claims("old"))) == {name.removeprefix("old-") for name in old}
        await check_log(store)
        await store.close()

    asyncio.run(verify())


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_database_that_crashes_under_an_open_store_is_found_again(
    url: str, store: Store, postgres: Any
) -> None:
    seen: list[int] = []
    all_seen = asyncio.Event()

    async def watch() -> None:
        while True:
            try:
                async for change in store.watch(seen[-1] if seen else 0):
                    seen.append(change.revision)
                    if change.revision == 41:
                        all_seen.set()
            except Unavailable:
                await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    for number in range(20):
        await store.write(lambda tx, number=number: tx.insert(instance(f"a{number}")))
    await asyncio.to_thread(postgres.stop, signal.SIGQUIT)
    try:
        with pytest.raises(Unavailable):
            await store.write(lambda tx: tx.insert(volume("lost")))
        with pytest.raises(Unavailable):
            await store.revision()
    finally:
        await asyncio.to_thread(postgres.start)
    for number in range(20):
        await store.write(lambda tx, number=number: tx.insert(instance(f"b{number}")))
    other = open_store(url)
    await other.open()
    await other.write(lambda tx: tx.insert(instance("from-elsewhere")))
    await other.close()
    async with asyncio.timeout(90):
        await all_seen.wait()
    watching.cancel()
    assert seen == list(range(1, 42))
    assert len((await store.list("instance")).items) == 41
