"""What instances with virtual hardware have: a reset button, a screen, a keyboard and a pointer, memory that can be dumped."""

from typing import Any

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import DumpQuery, ScreenQuery
from lamella.api.route import OCTETS, PNG, AnyRoute, Route, Success
from lamella.model.board import DesktopTicket, Input

BASE = "/v1/projects/{project:str}/instances/{name:str}"


async def reset(call: Call[Any]) -> answer.Answer:
    await call.layer.reset(call.who, call.project, call.name)
    return answer.nothing()


async def screenshot(call: Call[Any]) -> answer.Answer:
    picture = await call.layer.screenshot(call.who, call.project, call.name)
    return answer.Answer(200, picture, media_type=PNG.encode(), headers={"cache-control": "no-store"})


async def hands(call: Call[Any]) -> answer.Answer:
    await call.layer.input(call.who, call.project, call.name, await call.body(Input))
    return answer.nothing()


async def desktop(call: Call[ScreenQuery]) -> answer.Answer:
    ticket = await call.layer.desktop(call.who, call.project, call.name, kind=call.query.kind)
    return answer.json(ticket, headers={"cache-control": "no-store"})


async def dump(call: Call[DumpQuery]) -> answer.Stream:
    chunks = call.layer.dump(call.who, call.project, call.name, crash=call.query.crash)
    return await answer.Stream(chunks, OCTETS).begin(grace=None)


def _route(method: str, path: str, name: str, summary: str, *, action: Action = Action.ENTER, **rest: Any) -> AnyRoute:
    # Whoever sees the screen or the memory is inside.
    return Route(
        method=method,
        path=BASE + path,
        name=name,
        summary=summary,
        action=action,
        kind="instance",
        refuses=(404, 409, 422, 504),
        **rest,
    )


ROUTES: list[AnyRoute] = [
    _route(
        "POST",
        "/reset",
        "resetInstance",
        "Press the reset button: the guest is asked nothing",
        action=Action.OPERATE,
        handler=reset,
        answers=Success(status=204),
    ),
    _route(
        "GET",
        "/screenshot",
        "getScreenshot",
        "What the screen shows",
        handler=screenshot,
        answers=Success(streams=(PNG,)),
    ),
    _route(
        "POST",
        "/input",
        "sendInput",
        "Type text, press keys, click; in this order",
        handler=hands,
        body=Input,
        answers=Success(status=204),
    ),
    _route(
        "POST",
        "/desktop",
        "openDesktop",
        "A ticket that lets one viewer in, once; it voids the one before",
        handler=desktop,
        query=ScreenQuery,
        answers=Success(type=DesktopTicket),
    ),
    _route(
        "GET",
        "/dump",
        "dumpMemory",
        "The guest's memory as an ELF core",
        handler=dump,
        query=DumpQuery,
        answers=Success(streams=(OCTETS,)),
    ),
]
