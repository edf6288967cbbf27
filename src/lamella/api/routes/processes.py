"""Over WebSocket: processes (exec and attach) and a screen. ``docs/api.md`` tells the messages."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call, NoQuery
from lamella.api.queries import Query, ScreenQuery
from lamella.api.route import AnyRoute, Route
from lamella.model.stream import ExecSpec
from lamella.model.validation import invalid
from lamella.wire.problem import Problem, title_of
from lamella.wire.pump import Receive, Send, converse, next_message

BASE = "/v1/projects/{project:str}/instances/{name:str}"


class AttachQuery(Query):
    start: bool = False


class SocketRoute(msgspec.Struct, kw_only=True, frozen=True):
    """Like a Route; the handler runs after identity and permission, on a WebSocket that is accepted."""

    path: str
    query: type[msgspec.Struct]
    handler: Callable[[Call[Any], Receive, Send], Awaitable[None]]
    action: Action = Action.ENTER
    kind: str = "instance"


async def exec(call: Call[Any], receive: Receive, send: Send) -> None:
    data = await next_message(receive)
    if data is None:
        return
    try:
        spec = msgspec.msgpack.decode(data, type=ExecSpec)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(str(error), "the process to run") from error
    await converse(receive, send, await call.layer.exec(call.who, call.project, call.name, spec), call.gone)


async def attach(call: Call[AttachQuery], receive: Receive, send: Send) -> None:
    stream = await call.layer.attach(call.who, call.project, call.name, start=call.query.start)
    await converse(receive, send, stream, call.gone)


async def screen(call: Call[ScreenQuery], receive: Receive, send: Send) -> None:
    stream = await call.layer.screen(call.who, call.project, call.name, kind=call.query.kind)
    await converse(receive, send, stream, call.gone)


async def upgrade(call: Call[Any]) -> answer.Answer:
    """A plain GET where a WebSocket is spoken."""
    return answer.problem(
        Problem(
            title=title_of(426),
            status=426,
            detail="this is spoken over WebSocket",
            code="invalid",
            hint="send Upgrade: websocket",
            instance=call.path,
        ),
        headers={"upgrade": "websocket", "connection": "upgrade"},
    )


SOCKETS = [
    SocketRoute(path=f"{BASE}/exec", query=NoQuery, handler=exec),
    SocketRoute(path=f"{BASE}/attach", query=AttachQuery, handler=attach),
    SocketRoute(path=f"{BASE}/screen", query=ScreenQuery, handler=screen),
]

ROUTES: list[AnyRoute] = [
    Route(
        method="GET",
        path=f"{BASE}/exec",
        name="exec",
        summary="Run a process beside the instance's own, over WebSocket",
        action=Action.ENTER,
        handler=upgrade,
        kind="instance",
        answers=None,
        refuses=(426,),
    ),
    Route(
        method="GET",
        path=f"{BASE}/attach",
        name="attach",
        summary="The instance's own standard streams, over WebSocket",
        action=Action.ENTER,
        handler=upgrade,
        kind="instance",
        query=AttachQuery,
        answers=None,
        refuses=(426,),
    ),
    Route(
        method="GET",
        path=f"{BASE}/screen",
        name="screen",
        summary="A viewer's connection to an instance's screen, over WebSocket: what it sends is stdin, what it gets stdout",
        action=Action.ENTER,
        handler=upgrade,
        kind="instance",
        query=ScreenQuery,
        answers=None,
        refuses=(426,),
    ),
]
