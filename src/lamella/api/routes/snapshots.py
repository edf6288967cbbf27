"""Taking snapshots, and going back to one."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.api.routes.pools import operation
from lamella.model.operation import Operation
from lamella.model.storage import Snapshot
from lamella.model.storage_bodies import SnapshotCreate, SnapshotRestore

MANY = "/v1/projects/{project:str}/snapshots"


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(SnapshotCreate)
    made = await call.layer.storage.snapshots.create(
        call.who, call.project, body, wait=call.query.wait, idempotency_key=call.idempotency_key
    )
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def restore(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(SnapshotRestore, default=SnapshotRestore())
    snapshots = call.layer.storage.snapshots
    return operation(await snapshots.restore(call.who, call.project, call.name, wait=call.query.wait, body=body))


ROUTES: list[AnyRoute] = [
    change(
        "snapshot",
        MANY,
        "createSnapshot",
        "Take a snapshot of a volume, or of all volumes of an instance, and its memory, at one instant",
        create,
        query=WriteQuery,
        body=SnapshotCreate,
        headers=("Idempotency-Key",),
        answers=Success(status=201, type=Snapshot, etag=True),
    ),
    change(
        "snapshot",
        MANY + "/{name:str}/restore",
        "restoreSnapshot",
        "Make volumes what they were, and have their instance go on from the memory that was kept; answers with the operation",
        restore,
        query=WriteQuery,
        body=SnapshotRestore,
        body_optional=True,
        answers=Success(status=202, type=Operation, etag=True),
    ),
]
