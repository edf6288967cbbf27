"""Files of an instance. Content is streamed both ways and never gathered, whatever its size."""

from typing import Any

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import ContentQuery, DirectoryQuery, PathQuery
from lamella.api.route import OCTETS, AnyRoute, Route, Success
from lamella.model.files import FileInfo

BASE = "/v1/projects/{project:str}/instances/{name:str}/files"


async def stat(call: Call[PathQuery]) -> answer.Answer:
    return answer.json(await call.layer.stat(call.who, call.project, call.name, call.query.path))


async def list_directory(call: Call[PathQuery]) -> answer.Answer:
    return answer.json(await call.layer.list_directory(call.who, call.project, call.name, call.query.path))


async def read(call: Call[PathQuery]) -> answer.Stream:
    chunks = call.layer.read_file(call.who, call.project, call.name, call.query.path)
    return await answer.Stream(chunks, OCTETS).begin(grace=None)


async def write(call: Call[ContentQuery]) -> answer.Answer:
    query = call.query
    await call.layer.write_file(
        call.who,
        call.project,
        call.name,
        query.path,
        call.stream(),
        mode=int(query.mode, 8),
        uid=query.uid,
        gid=query.gid,
    )
    return answer.nothing()


async def make_directory(call: Call[DirectoryQuery]) -> answer.Answer:
    query = call.query
    await call.layer.make_directory(
        call.who, call.project, call.name, query.path, mode=int(query.mode, 8), uid=query.uid, gid=query.gid
    )
    return answer.nothing()


def _route(method: str, path: str, name: str, summary: str, **rest: Any) -> AnyRoute:
    return Route(
        method=method,
        path=BASE + path,
        name=name,
        summary=summary,
        action=Action.ENTER,
        kind="instance",
        refuses=(404, 409, 422, 504),
        **rest,
    )


ROUTES: list[AnyRoute] = [
    _route(
        "GET",
        "",
        "statFile",
        "What there is at a path",
        handler=stat,
        query=PathQuery,
        answers=Success(type=FileInfo),
    ),
    _route(
        "GET",
        "/list",
        "listDirectory",
        "What a directory holds",
        handler=list_directory,
        query=PathQuery,
        answers=Success(type=list[FileInfo]),
    ),
    _route(
        "GET",
        "/content",
        "readFile",
        "The bytes of a file",
        handler=read,
        query=PathQuery,
        answers=Success(streams=(OCTETS,)),
    ),
    _route(
        "PUT",
        "/content",
        "writeFile",
        "Write a file; it is there whole, or not at all",
        handler=write,
        query=ContentQuery,
        body=bytes,
        answers=Success(status=204),
    ),
    _route(
        "POST",
        "/directory",
        "makeDirectory",
        "Make a directory, and those above it",
        handler=make_directory,
        query=DirectoryQuery,
        answers=Success(status=204),
    ),
]
