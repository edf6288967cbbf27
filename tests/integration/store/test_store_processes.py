"""Several processes on one database: nothing is lost, doubled, or out of order."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
from store_actors import instance

from lamella.store.store import Change, Store

ACTORS = str(Path(__file__).with_name("store_actors.py"))


async def start(verb: str, url: str, *args: object) -> Process:
    actor = await asyncio.create_subprocess_exec(
        sys.executable, ACTORS, verb, url, *map(str, args), stdin=asyncio.subprocess.DEVNULL, stdout=PIPE
    )
    assert actor.stdout is not None
    assert await asyncio.wait_for(actor.stdout.readline(), 90) == b"open\n"
    return actor


async def finish(actor: Process) -> list[str]:
    out, _ = await asyncio.wait_for(actor.communicate(), 90)
    assert actor.returncode == 0
    return out.decode().split()


async def watched(store: Store, since: int, last: int) -> list[Change]:
    seen: list[Change] = []
    async for change in store.watch(since):
        seen.append(change)
        if change.revision >= last:
            return seen
    raise AssertionError


async def test_a_watch_has_no_gap_and_no_repeat_while_several_processes_write(url: str, store: Store) -> None:
    writers, each, own = 3, 60, 40
    last = writers * each + own
    early = asyncio.create_task(watched(store, 0, last))
    actors = await asyncio.gather(*(start("inserts", url, f"w{n}", each) for n in range(writers)))
    for number in range(own):
        await store.write(lambda tx, number=number: tx.insert(instance(f"own-{number}")))
    late = asyncio.create_task(watched(store, await store.revision() // 2, last))
    for actor in actors:
        await finish(actor)
    seen = await asyncio.wait_for(early, 90)
    assert [change.revision for change in seen] == list(range(1, last + 1))
    assert all(change.resource.revision == change.revision for change in seen)
    names = [change.name for change in seen]
    for writer, number in [*((f"w{n}", each) for n in range(writers)), ("own", own)]:
        # Each writer's own changes, in the order in which it made them.
        assert [name for name in names if name.startswith(f"{writer}-")] == [f"{writer}-{n}" for n in range(number)]
    tail = await asyncio.wait_for(late, 90)
    assert tail == seen[-len(tail) :]


async def test_writers_that_check_revisions_lose_no_update(url: str, store: Store) -> None:
    made = await store.write(lambda tx: tx.insert(instance("counter", count="0")))
    actors = await asyncio.gather(*(start("counts", url, made.id, 10) for _ in range(3)))
    for actor in actors:
        await finish(actor)
    found = await store.by_id(made.id)
    assert (found.labels, found.revision, await store.revision()) == ({"count": "120"}, 121, 121)


async def test_no_key_is_claimed_twice(url: str, store: Store) -> None:
    actors = await asyncio.gather(*(start("grabs", url, f"owner{n}", 80) for n in range(3)))
    won = [await finish(actor) for actor in actors]
    assert sorted(int(key) for keys in won for key in keys) == list(range(80))
    claims = await store.read(lambda tx: tx.claims("slot"))
    assert claims == {key: f"owner{n}" for n, keys in enumerate(won) for key in keys}


async def test_many_may_open_a_new_database_at_once(url: str) -> None:
    actors = await asyncio.gather(*(start("inserts", url, f"w{n}", 5) for n in range(4)))
    assert [await finish(actor) for actor in actors] == [[]] * 4


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_the_file_is_the_owners_alone(url: str, store: Store) -> None:
    await store.write(lambda tx: tx.insert(instance("web")))
    path = Path(url.removeprefix("sqlite:///"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"lamella.db": 0o600, "lamella.db-wal": 0o600, "lamella.db-shm": 0o600}
