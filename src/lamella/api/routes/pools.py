"""Pools: making them, reading all that is in them, and checking all storage."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.model.operation import Operation
from lamella.model.storage import Pool
from lamella.model.storage_bodies import PoolCreate, PoolScrub, StorageCheck

MANY = "/v1/projects/{project:str}/pools"


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(PoolCreate)
    made = await call.layer.storage.pools.create(call.who, call.project, body, wait=call.query.wait)
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def scrub(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(PoolScrub, default=PoolScrub())
    pools = call.layer.storage.pools
    return operation(await pools.scrub(call.who, call.project, call.name, body, wait=call.query.wait))


async def check(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(StorageCheck, default=StorageCheck())
    return operation(await call.layer.storage.inspection.check(call.who, body, wait=call.query.wait))


def operation(made: Operation) -> answer.Answer:
    """A long change: accepted, and where it can be followed."""
    location = f"/v1/projects/{made.project}/operations/{made.id}"
    return answer.resource(made, status=202, headers={"location": location})


ROUTES: list[AnyRoute] = [
    change(
        "pool",
        MANY,
        "createPool",
        "Make a pool on every host; nothing is left of one that cannot be made",
        create,
        action=Action.ADMINISTER,
        query=WriteQuery,
        body=PoolCreate,
        answers=Success(status=201, type=Pool, etag=True),
    ),
    change(
        "pool",
        MANY + "/{name:str}/scrub",
        "scrubPool",
        "Read everything in a pool and compare; answers with the operation that does it",
        scrub,
        action=Action.ADMINISTER,
        query=WriteQuery,
        body=PoolScrub,
        body_optional=True,
        answers=Success(status=202, type=Operation, etag=True),
    ),
    change(
        "pool",
        "/v1/fsck",
        "checkStorage",
        "Compare what is known of volumes and snapshots with what lies in the pools; answers with the operation that does it",
        check,
        action=Action.ADMINISTER,
        query=WriteQuery,
        body=StorageCheck,
        body_optional=True,
        answers=Success(status=202, type=Operation, etag=True),
    ),
]
