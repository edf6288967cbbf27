"""Bringing images in."""

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Route, Success
from lamella.model.operation import Operation
from lamella.model.requests import ImageCreate


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(ImageCreate)
    operation = await call.layer.create_image(call.who, call.project, body, wait=call.query.wait)
    location = f"/v1/projects/{call.project}/operations/{operation.id}"
    return answer.resource(operation, status=202, headers={"location": location})


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
]
