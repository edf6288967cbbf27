"""What is wished of volumes: done for each by itself, the newest of each kind."""

import asyncio
from functools import partial

from lamella.host.storage.wishes import Wishes
from lamella.model.errors import NotFound, Unavailable


async def test_one_that_does_not_answer_holds_up_no_other() -> None:
    wishes, answers, done = Wishes(), asyncio.Event(), list[str]()

    async def held(id: str) -> None:
        await answers.wait()
        done.append(id)

    async def at_once(id: str) -> None:
        done.append(id)

    wishes.set("vol_slow", "held", partial(held, "vol_slow"))
    wishes.set("vol_a", "held", partial(at_once, "vol_a"))
    await wishes.settled(["vol_a", "vol_gone"], 20)
    assert done == ["vol_a"]
    await wishes.settled(["vol_slow"], 0)
    # While it waits the newest counts; other kinds are kept.
    for number in range(3):
        wishes.set("vol_slow", "limits", partial(at_once, f"limit {number}"))
    wishes.set("vol_slow", "held", partial(at_once, "released"))
    answers.set()
    await wishes.settled(["vol_slow"], 20)
    assert done == ["vol_a", "vol_slow", "limit 2", "released"]


async def test_what_fails_is_over_and_the_next_wish_is_done() -> None:
    wishes, done = Wishes(), list[str]()

    async def failing(error: Exception) -> None:
        raise error

    async def well() -> None:
        done.append("well")

    for kind, error in (("held", NotFound("closed")), ("limits", Unavailable("gone")), ("else", OSError())):
        wishes.set("vol_a", kind, partial(failing, error))
    wishes.set("vol_a", "last", well)
    await wishes.settled(["vol_a"], 20)
    assert done == ["well"]


async def test_nothing_is_left_when_it_is_closed() -> None:
    wishes = Wishes()
    wishes.set("vol_a", "held", asyncio.Event().wait)  # pyright: ignore[reportArgumentType]
    await wishes.close()
    assert {task.get_name() for task in asyncio.all_tasks()} & {"wishes of vol_a"} == set()
