"""What only instances have: making them, their power, their contract, their logs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, get_args
from urllib.parse import quote

import msgspec

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.face import PowerVerb
from lamella.api.queries import LogsQuery, WaitQuery, WriteQuery
from lamella.api.route import LINES, AnyRoute, Route, Success
from lamella.api.routes.pools import operation
from lamella.model.contract import Contract
from lamella.model.instance import Instance
from lamella.model.operation import Operation
from lamella.model.requests import Explanation, InstanceCreate, InstanceFork, KillRequest, ResourcePut, StopRequest
from lamella.model.usage import LogEntry, Usage

MANY = "/v1/projects/{project:str}/instances"
ONE = MANY + "/{name:str}"

_encode = msgspec.json.Encoder().encode


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(InstanceCreate)
    made = await call.layer.create_instance(
        call.who, call.project, body, wait=call.query.wait, idempotency_key=call.idempotency_key
    )
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def put(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(ResourcePut)
    return answer.resource(
        await call.layer.put_instance(
            call.who, call.project, call.name, body, expected=call.expected, wait=call.query.wait
        )
    )


async def fork(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(InstanceFork, default=InstanceFork())
    made = await call.layer.fork(
        call.who, call.project, call.name, body, wait=call.query.wait, idempotency_key=call.idempotency_key
    )
    return operation(made)


async def kill(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(KillRequest, default=KillRequest())
    return answer.resource(await call.layer.kill(call.who, call.project, call.name, body.signal))


async def contract(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.contract(call.who, call.project, call.name))


async def explain(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.explain(call.who, call.project, call.name))


async def wait_for(call: Call[WaitQuery]) -> answer.Answer:
    query = call.query
    return answer.resource(await call.layer.wait_for(call.who, call.project, call.name, query.condition, query.timeout))


async def usage(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.usage(call.who, call.project))


async def logs(call: Call[LogsQuery]) -> answer.Stream:
    query = call.query
    entries = call.layer.logs(
        call.who, call.project, call.name, follow=query.follow, tail=query.tail, since=query.since
    )
    return await answer.Stream(_lines(entries), LINES).begin()


async def _lines(entries: AsyncIterator[LogEntry]) -> AsyncIterator[bytes]:
    async for entry in entries:
        yield _encode(entry) + b"\n"


def _power(verb: PowerVerb) -> Callable[[Call[WriteQuery]], Awaitable[answer.Answer]]:
    async def power(call: Call[WriteQuery]) -> answer.Answer:
        body = await call.body(StopRequest, default=StopRequest()) if verb in ("stop", "restart") else None
        timeout = body.timeout if body else None
        return answer.resource(
            await call.layer.power(call.who, call.project, call.name, verb, timeout=timeout, wait=call.query.wait)
        )

    return power


def _power_route(verb: PowerVerb) -> AnyRoute:
    return Route(
        method="POST",
        path=f"{ONE}/{verb}",
        name=f"{verb}Instance",
        summary=f"Ask an instance to {verb}",
        action=Action.OPERATE,
        handler=_power(verb),
        kind="instance",
        query=WriteQuery,
        body=StopRequest if verb in ("stop", "restart") else None,
        body_optional=True,
        answers=Success(type=Instance, etag=True),
        refuses=(404, 409, 422, 504),
    )


ROUTES: list[AnyRoute] = [
    Route(
        method="POST",
        path=MANY,
        name="createInstance",
        summary="Make an instance, and start it unless its power is stopped",
        action=Action.WRITE,
        handler=create,
        kind="instance",
        query=WriteQuery,
        body=InstanceCreate,
        headers=("Idempotency-Key",),
        answers=Success(status=201, type=Instance, etag=True),
        refuses=(404, 409, 422, 504),
    ),
    Route(
        method="PUT",
        path=ONE,
        name="putInstance",
        summary="Make an instance, or replace the whole of its labels and spec",
        action=Action.WRITE,
        handler=put,
        kind="instance",
        query=WriteQuery,
        body=ResourcePut,
        headers=("If-Match",),
        answers=Success(type=Instance, etag=True),
        refuses=(404, 409, 412, 422, 504),
    ),
    *(_power_route(verb) for verb in get_args(PowerVerb)),
    Route(
        method="POST",
        path=f"{ONE}/fork",
        name="forkInstance",
        summary="Make copies of a running instance that go on where it is, all or none; answers with the operation",
        action=Action.WRITE,
        handler=fork,
        kind="instance",
        query=WriteQuery,
        body=InstanceFork,
        body_optional=True,
        headers=("Idempotency-Key",),
        answers=Success(status=202, type=Operation, etag=True),
        refuses=(404, 409, 422, 503),
    ),
    Route(
        method="POST",
        path=f"{ONE}/kill",
        name="killInstance",
        summary="Send a signal to an instance's own process",
        action=Action.OPERATE,
        handler=kill,
        kind="instance",
        query=WriteQuery,
        body=KillRequest,
        body_optional=True,
        answers=Success(type=Instance, etag=True),
        refuses=(404, 409, 422),
    ),
    Route(
        method="GET",
        path=f"{ONE}/contract",
        name="getContract",
        summary="What isolates an instance, what it is guaranteed, what limits it, and what is not promised",
        action=Action.READ,
        handler=contract,
        kind="instance",
        answers=Success(type=Contract),
        refuses=(404, 409),
    ),
    Route(
        method="GET",
        path=f"{ONE}/explain",
        name="explainInstance",
        summary="How an instance came to be as it is, and what would happen next",
        action=Action.READ,
        handler=explain,
        kind="instance",
        answers=Success(type=Explanation),
        refuses=(404, 409),
    ),
    Route(
        method="GET",
        path=f"{ONE}/wait",
        name="waitForInstance",
        summary="Answer when an instance is as asked",
        action=Action.READ,
        handler=wait_for,
        kind="instance",
        query=WaitQuery,
        answers=Success(type=Instance, etag=True),
        refuses=(404, 409, 504),
    ),
    Route(
        method="GET",
        path=f"{ONE}/logs",
        name="getLogs",
        summary="Output of an instance's own process, one LogEntry a line, data in base64",
        action=Action.READ,
        handler=logs,
        kind="instance",
        query=LogsQuery,
        answers=Success(streams=(LINES,)),
        refuses=(404, 409),
    ),
    Route(
        method="GET",
        path="/v1/projects/{project:str}/usage",
        name="getUsage",
        summary="What every running instance uses now, by name",
        action=Action.READ,
        handler=usage,
        kind="instance",
        answers=Success(type=dict[str, Usage]),
        refuses=(404,),
    ),
]
