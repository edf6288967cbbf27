"""What every kind has in common: list, watch, get, patch, delete."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import ChangesQuery, DeleteQuery, ListQuery, WriteQuery
from lamella.api.route import EVENTS, AnyRoute, Route, Success
from lamella.model.errors import Invalid, LamellaError
from lamella.model.kinds import KINDS, plural
from lamella.model.requests import Items, ResourcePatch
from lamella.store.store import Change
from lamella.wire.problem import problem_of

HEARTBEAT_SECONDS = 15.0
PATCHABLE = (
    "project",
    "image",
    "instance",
    "pool",
    "volume",
    "snapshot",
    "network",
    "firewall",
    "balancer",
    "template",
    "host",
    "repository",
    "backup",
    "router",
    "address",
)
DELETABLE = (
    *("project", "image", "instance", "pool", "volume", "snapshot", "network", "firewall", "host", "operation"),
    *("router", "address"),
    *("repository", "backup", "policy", "replication", "balancer", "template"),
)

# What belongs to the layer, or holds what is in everybody's volumes: made by administrators, and changed by them.
ADMINISTERED = frozenset({"host", "pool", "repository", "backup", "policy"})

_encode = msgspec.json.Encoder().encode


async def list_or_watch(call: Call[ListQuery], kind: str) -> answer.Answer | answer.Stream:
    query = call.query
    if query.watch:
        if query.label or query.cursor:
            raise Invalid(
                "a watch takes no label and no cursor", hint="choose among the events as they come", field="watch"
            )
        return await _watch(call, kind, query.since)
    labels = dict(label.split("=", 1) for label in query.label)
    page = await call.layer.list(call.who, call.project, kind, labels=labels, cursor=query.cursor, limit=query.limit)
    return answer.json(page)


async def changes(call: Call[ChangesQuery]) -> answer.Stream:
    return await _watch(call, None, call.query.since)


async def get(call: Call[Any], kind: str) -> answer.Answer:
    return answer.resource(await call.layer.get(call.who, call.project, kind, call.name))


async def patch(call: Call[WriteQuery], kind: str) -> answer.Answer:
    body = await call.body(ResourcePatch)
    return answer.resource(
        await call.layer.patch(
            call.who, call.project, kind, call.name, body, expected=call.expected, wait=call.query.wait
        )
    )


async def delete(call: Call[DeleteQuery], kind: str) -> answer.Answer:
    query = call.query
    await call.layer.delete(
        call.who, call.project, kind, call.name, force=query.force, expected=call.expected, wait=query.wait
    )
    return answer.nothing()


async def _watch(call: Call[Any], kind: str | None, since: int | None) -> answer.Stream:
    since = await _beginning(call) if since is None else since
    events = _events(call.layer.watch(call.who, call.project, kind, since))
    stream = answer.Stream(events, EVENTS, heartbeat=(HEARTBEAT_SECONDS, b": still here\n\n"), last=_last_event)
    return await stream.begin(grace=0.02)


async def _beginning(call: Call[Any]) -> int:
    """Where a browser's EventSource goes on after a lost connection (HTML, 9.2), or now."""
    seen = call.header("last-event-id")
    if seen is None:
        return (await call.layer.about(call.who)).revision
    if not (seen.isascii() and seen.isdigit()) or len(seen) > 18:
        raise Invalid(f"Last-Event-ID {seen!r} is no revision", hint="send the id of an event", field="Last-Event-ID")
    return int(seen)


async def _events(source: AsyncIterator[Change]) -> AsyncIterator[bytes]:
    async for change in source:
        yield b"id: %d\nevent: %s\ndata: %s\n\n" % (change.revision, change.action.encode(), _encode(change.resource))


def _last_event(error: LamellaError) -> bytes:
    return b"event: problem\ndata: %s\n\n" % _encode(problem_of(error))


def page_type(kind: str) -> Any:
    """A page of *kind*, for the document: :class:`Items` with its items' type."""
    return msgspec.defstruct(
        f"{kind.capitalize()}Items",
        [("items", list[KINDS[kind]]), ("cursor", str, ""), ("revision", int, 0)],
        kw_only=True,
        module=Items.__module__,
    )


def _bound(handler: Callable[[Call[Any], str], Awaitable[Any]], kind: str) -> Callable[[Call[Any]], Awaitable[Any]]:
    async def with_kind(call: Call[Any]) -> Any:
        return await handler(call, kind)

    return with_kind


def _changing(kind: str) -> Action:
    return Action.ADMINISTER if kind in ADMINISTERED else Action.WRITE


def _routes(kind: str) -> list[AnyRoute]:
    kinds, title = plural(kind), kind.capitalize()
    many = f"/v1/projects/{{project:str}}/{kinds}"
    one = f"{many}/{{name:str}}"
    routes: list[AnyRoute] = [
        Route(
            method="GET",
            path=many,
            name=f"list{kinds.capitalize()}",
            summary=f"A page of {kinds}, or with watch=true their changes",
            action=Action.READ,
            handler=_bound(list_or_watch, kind),
            kind=kind,
            query=ListQuery,
            answers=Success(type=page_type(kind), streams=(EVENTS,)),
            refuses=(404, 409),
        ),
        Route(
            method="GET",
            path=one,
            name=f"get{title}",
            summary=f"One {kind}, by name or id",
            action=Action.READ,
            handler=_bound(get, kind),
            kind=kind,
            answers=Success(type=KINDS[kind], etag=True),
            refuses=(404,),
        ),
    ]
    if kind in PATCHABLE:
        routes.append(
            Route(
                method="PATCH",
                path=one,
                name=f"patch{title}",
                summary=f"Change labels and spec of a {kind} by a JSON merge patch (RFC 7396)",
                action=_changing(kind),
                handler=_bound(patch, kind),
                kind=kind,
                query=WriteQuery,
                body=ResourcePatch,
                headers=("If-Match",),
                answers=Success(type=KINDS[kind], etag=True),
                refuses=(404, 409, 412, 422, 504),
            )
        )
    if kind in DELETABLE:
        routes.append(
            Route(
                method="DELETE",
                path=one,
                name=f"delete{title}",
                summary=f"Remove a {kind}",
                action=_changing(kind),
                handler=_bound(delete, kind),
                kind=kind,
                query=DeleteQuery,
                headers=("If-Match",),
                answers=Success(status=204),
                refuses=(404, 409, 412, 422, 504),
            )
        )
    return routes


ROUTES: list[AnyRoute] = [
    *(route for kind in KINDS for route in _routes(kind)),
    Route(
        method="GET",
        path="/v1/projects/{project:str}/changes",
        name="watchChanges",
        summary="Every change in a project, as server-sent events",
        action=Action.READ,
        handler=changes,
        query=ChangesQuery,
        answers=Success(streams=(EVENTS,)),
        refuses=(404, 409),
    ),
]
