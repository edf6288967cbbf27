"""Bringing images in, and taking their disks out."""

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import ExportQuery, WriteQuery
from lamella.api.route import OCTETS, AnyRoute, Route, Success
from lamella.model.operation import Operation
from lamella.model.requests import ImageCreate


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(ImageCreate)
    operation = await call.layer.create_image(call.who, call.project, body, wait=call.query.wait)
    location = f"/v1/projects/{call.project}/operations/{operation.id}"
    return answer.resource(operation, status=202, headers={"location": location})


async def export(call: Call[ExportQuery]) -> answer.Stream:
    chunks = call.layer.export_image(call.who, call.project, call.name, format=call.query.format)
    return await answer.Stream(chunks, OCTETS).begin(grace=None)


ROUTES: list[AnyRoute] = [
    Route(
        method="POST",
        path="/v1/projects/{project:str}/images",
        name="createImage",
        summary="Pull, import or build an image; answers with the operation that does it",
        action=Action.WRITE,
        handler=create,
        kind="image",
        query=WriteQuery,
        body=ImageCreate,
        answers=Success(status=202, type=Operation, etag=True),
        refuses=(404, 409, 422, 504),
    ),
    Route(
        method="GET",
        path="/v1/projects/{project:str}/images/{name:str}/export",
        name="exportImage",
        summary="An image's disk, as a file of a format",
        action=Action.READ,
        handler=export,
        kind="image",
        query=ExportQuery,
        answers=Success(streams=(OCTETS,)),
        refuses=(404, 409, 422, 504),
    ),
]
