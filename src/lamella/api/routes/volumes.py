"""What only volumes have: making them, their size, their name, their key, and the instances that they are attached to."""

from typing import Any
from urllib.parse import quote

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Route, Success, change
from lamella.api.routes.pools import operation
from lamella.model.operation import Operation
from lamella.model.storage import Volume
from lamella.model.storage_bodies import (
    VolumeAttach,
    VolumeCreate,
    VolumeDetach,
    VolumeRekey,
    VolumeRename,
    VolumeResize,
    VolumeUnlock,
)

MANY = "/v1/projects/{project:str}/volumes"
ONE = MANY + "/{name:str}"


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeCreate)
    made = await call.layer.storage.volumes.create(
        call.who, call.project, body, wait=call.query.wait, idempotency_key=call.idempotency_key
    )
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def resize(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeResize)
    volumes = call.layer.storage.volumes
    return operation(
        await volumes.resize(call.who, call.project, call.name, body.size, wait=call.query.wait, expected=call.expected)
    )


async def rename(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeRename)
    return answer.resource(await call.layer.storage.volumes.rename(call.who, call.project, call.name, body.name))


async def attach(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeAttach)
    volumes = call.layer.storage.volumes
    return answer.resource(await volumes.attach(call.who, call.project, call.name, body, wait=call.query.wait))


async def detach(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeDetach)
    volumes = call.layer.storage.volumes
    return answer.resource(await volumes.detach(call.who, call.project, call.name, body, wait=call.query.wait))


async def unlock(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeUnlock)
    return answer.resource(await call.layer.storage.keys.unlock(call.who, call.project, call.name, body.passphrase))


async def rekey(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeRekey)
    return answer.resource(await call.layer.storage.keys.rekey(call.who, call.project, call.name, body))


def _verb(verb: str, summary: str, handler: Any, body: Any, **rest: Any) -> AnyRoute:
    settings: dict[str, Any] = {
        "answers": Success(type=Volume, etag=True),
        "refuses": (404, 409, 412, 422, 504),
        **rest,
    }
    return change("volume", f"{ONE}/{verb}", f"{verb}Volume", summary, handler, query=WriteQuery, body=body, **settings)


ROUTES: list[AnyRoute] = [
    Route(
        method="POST",
        path=MANY,
        name="createVolume",
        summary="Make a volume, empty or as a clone of a volume or of a snapshot",
        action=Action.WRITE,
        handler=create,
        kind="volume",
        query=WriteQuery,
        body=VolumeCreate,
        headers=("Idempotency-Key",),
        answers=Success(status=201, type=Volume, etag=True),
        refuses=(404, 409, 422, 504),
    ),
    _verb(
        "resize",
        "Grow a volume, or shrink it where nothing is lost, open or not; answers with the operation that does it",
        resize,
        VolumeResize,
        headers=("If-Match",),
        answers=Success(status=202, type=Operation, etag=True),
    ),
    _verb("rename", "Call a volume something else; its snapshots follow", rename, VolumeRename),
    _verb("attach", "Attach a volume to an instance: mounted, or as a bare disk", attach, VolumeAttach),
    _verb("detach", "Take a volume out of an instance", detach, VolumeDetach),
    _verb("unlock", "Let the host keep the key that a passphrase unwraps", unlock, VolumeUnlock),
    _verb("rekey", "Give an encrypted volume another key; the old one opens nothing any more", rekey, VolumeRekey),
]
