"""Taking snapshots, and going back to one."""

from typing import Any
from urllib.parse import quote

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Route, Success
from lamella.api.routes.pools import operation
from lamella.model.operation import Operation
from lamella.model.storage import Snapshot
from lamella.model.storage_bodies import SnapshotCreate

MANY = "/v1/projects/{project:str}/snapshots"


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(SnapshotCreate)
    made = await call.layer.storage.snapshots.create(
        call.who, call.project, body, wait=call.query.wait, idempotency_key=call.idempotency_key
    )
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def restore(call: Call[WriteQuery]) -> answer.Answer:
    snapshots = call.layer.storage.snapshots
    return operation(await snapshots.restore(call.who, call.project, call.name, wait=call.query.wait))


def _route(path: str, name: str, summary: str, **rest: Any) -> AnyRoute:
    return Route(
        method="POST",
        path=path,
        name=name,
        summary=summary,
        action=Action.WRITE,
        kind="snapshot",
        query=WriteQuery,
        refuses=(404, 409, 422, 504),
        **rest,
    )


ROUTES: list[AnyRoute] = [
    _route(
        MANY,
        "createSnapshot",
        "Take a snapshot of a volume, or of all volumes of an instance at one instant",
        handler=create,
        body=SnapshotCreate,
        headers=("Idempotency-Key",),
        answers=Success(status=201, type=Snapshot, etag=True),
    ),
    _route(
        MANY + "/{name:str}/restore",
        "restoreSnapshot",
        "Make volumes what they were; answers with the operation that does it",
        handler=restore,
        answers=Success(status=202, type=Operation, etag=True),
    ),
]
