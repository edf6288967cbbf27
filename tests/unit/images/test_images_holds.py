"""Holds, graces, turns, meters and work that is cancelled."""

import asyncio
import threading
import time

import pytest

from lamella.host.images.holds import Holds, Turns
from lamella.host.images.library import Progress
from lamella.host.images.meter import Meter
from lamella.host.images.thread import stoppable, together
from lamella.model.errors import Corrupt, Unavailable


async def test_grace_ends_by_time_or_by_name() -> None:
    now = [0.0]
    holds = Holds(10, clock=lambda: now[0])
    holds.brought("a")
    holds.brought("b")
    holds.known({"a"})
    assert holds.fresh() == {"b"}
    now[0] = 10.1
    assert holds.fresh() == set()


async def test_a_hold_waits_for_a_collection_under_way() -> None:
    holds = Holds(0)
    hold = holds.begin()
    await holds.settled.acquire()
    adding = asyncio.create_task(hold.add("x"))
    await asyncio.sleep(0.01)
    assert holds.held() == set()
    holds.settled.release()
    await adding
    assert holds.held() == {"x"}
    holds.end(hold)
    assert holds.held() == set()


async def test_turns_are_one_at_a_time_for_each_key() -> None:
    turns, inside, most = Turns(), {"a": 0, "b": 0}, {"a": 0, "b": 0}

    async def work(key: str) -> None:
        async with turns.of(key):
            inside[key] += 1
            most[key] = max(most[key], inside[key])
            await asyncio.sleep(0.001)
            inside[key] -= 1

    tasks = [asyncio.create_task(work(key)) for key in "abab" * 5]
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == {"a": 1, "b": 1} and not turns._locks  # pyright: ignore[reportPrivateUsage]


async def test_cancelled_work_has_ended_when_the_cancellation_arrives() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        begun.set()
        stop.wait(90)
        time.sleep(0.05)
        ended.set()

    task = asyncio.create_task(stoppable(work))
    assert await asyncio.to_thread(begun.wait, 90)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_the_first_error_is_told_and_corruption_before_all() -> None:
    async def fail(error: Exception, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
        finally:
            raise error

    with pytest.raises(Corrupt):
        await together([fail(Unavailable("a"), 0), fail(Corrupt("b"), 10)])


async def test_meter_tells_from_threads_and_in_order() -> None:
    told: list[Progress] = []
    first = Meter(told.append, "fetching", 100)
    second = Meter(told.append, "unpacking", 100, after=first)
    await asyncio.to_thread(second.add, 100)
    await asyncio.sleep(0)
    assert {one.step for one in told} == {"fetching"}
    await asyncio.to_thread(first.add, 100)
    await asyncio.to_thread(second.add, 0)
    await asyncio.sleep(0.01)
    assert (told[-1].step, told[-1].done, told[-1].total) == ("unpacking", 100, 100)
