"""Volumes brought in, taken out, moved to other pools, and the policy by which they move by themselves."""

from typing import Any

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import VolumeExportQuery, WriteQuery
from lamella.api.route import OCTETS, REFUSED, AnyRoute, Route, Success, change
from lamella.api.routes.pools import operation
from lamella.model.operation import Operation
from lamella.model.replication_bodies import VolumeImport, VolumeMove, VolumeTier
from lamella.model.replication_requests import ExportedDigest
from lamella.model.storage import Volume

MANY = "/v1/projects/{project:str}/volumes"
ONE = MANY + "/{name:str}"


async def bring(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeImport)
    return operation(await call.layer.storage.transferring.bring(call.who, call.project, body, wait=call.query.wait))


async def export(call: Call[VolumeExportQuery]) -> answer.Stream:
    transferring = call.layer.storage.transferring
    chunks = transferring.export(call.who, call.project, call.name, format=call.query.format)
    return await answer.Stream(chunks, OCTETS).begin(grace=None)


async def digest(call: Call[VolumeExportQuery]) -> answer.Answer:
    transferring = call.layer.storage.transferring
    return answer.json(await transferring.digest(call.who, call.project, call.name, format=call.query.format))


async def move(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeMove)
    transferring = call.layer.storage.transferring
    return operation(await transferring.move(call.who, call.project, call.name, body, wait=call.query.wait))


async def tier(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(VolumeTier)
    return answer.resource(await call.layer.storage.tiering.set(call.who, call.project, call.name, body.policy))


def _read(path: str, name: str, summary: str, handler: Any, answers: Success) -> AnyRoute:
    return Route(
        method="GET",
        path=path,
        name=name,
        summary=summary,
        action=Action.READ,
        handler=handler,
        kind="volume",
        query=VolumeExportQuery,
        answers=answers,
        refuses=REFUSED,
    )


_LONG = Success(status=202, type=Operation, etag=True)

ROUTES: list[AnyRoute] = [
    change(
        "volume",
        f"{MANY}/import",
        "importVolume",
        "Make a volume of a disk in a file of the host; answers with the operation that does it",
        bring,
        # The file is opened by root, whoever may read it.
        action=Action.ADMINISTER,
        query=WriteQuery,
        body=VolumeImport,
        answers=_LONG,
    ),
    _read(
        f"{ONE}/export",
        "exportVolume",
        "A volume, or a snapshot of one (data@nightly), as a file of a format",
        export,
        Success(streams=(OCTETS,)),
    ),
    _read(
        f"{ONE}/digest",
        "digestVolumeExport",
        "Length and SHA-256 of the newest export that came to its end",
        digest,
        Success(type=ExportedDigest),
    ),
    change(
        "volume",
        f"{ONE}/move",
        "moveVolume",
        "Move a volume to another pool while it is used; answers with the operation that does it",
        move,
        query=WriteQuery,
        body=VolumeMove,
        answers=_LONG,
    ),
    change(
        "volume",
        f"{ONE}/tier",
        "tierVolume",
        "Move a volume by how it is used from now on, or no more",
        tier,
        query=WriteQuery,
        body=VolumeTier,
        answers=Success(type=Volume, etag=True),
    ),
]
