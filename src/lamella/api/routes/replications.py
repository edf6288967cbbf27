"""Replications: volumes that are kept a second time."""

from typing import Any
from urllib.parse import quote

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Route, Success, change
from lamella.model.replication import Replication
from lamella.model.replication_bodies import ReplicationCreate, ReplicationPromote

MANY = "/v1/projects/{project:str}/replications"


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(ReplicationCreate)
    made = await call.layer.storage.replications.create(call.who, call.project, body)
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def pause(call: Call[WriteQuery]) -> answer.Answer:
    return answer.resource(await call.layer.storage.replications.pause(call.who, call.project, call.name, paused=True))


async def resume(call: Call[WriteQuery]) -> answer.Answer:
    return answer.resource(await call.layer.storage.replications.pause(call.who, call.project, call.name, paused=False))


async def promote(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(ReplicationPromote, default=ReplicationPromote())
    replications = call.layer.storage.replications
    return answer.resource(await replications.promote(call.who, call.project, call.name, force=body.force))


def _verb(verb: str, summary: str, handler: Any, **rest: Any) -> AnyRoute:
    answers = Success(type=Replication, etag=True)
    path, name = f"{MANY}/{{name:str}}/{verb}", f"{verb}Replication"
    return change("replication", path, name, summary, handler, query=WriteQuery, answers=answers, **rest)


ROUTES: list[AnyRoute] = [
    Route(
        method="POST",
        path=MANY,
        name="createReplication",
        summary="Keep a volume in a second pool, too",
        action=Action.WRITE,
        handler=create,
        kind="replication",
        query=WriteQuery,
        body=ReplicationCreate,
        answers=Success(status=201, type=Replication, etag=True),
        refuses=(404, 409, 422, 504),
    ),
    _verb("pause", "Let the replica fall behind", pause),
    _verb("resume", "Let the replica catch up, and keep it so", resume),
    _verb(
        "promote",
        "Have the replica take its source's place, which can be opened no more",
        promote,
        body=ReplicationPromote,
        body_optional=True,
    ),
]
