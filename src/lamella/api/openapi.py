"""The OpenAPI 3.1 document, made from the routes and the types themselves (msgspec writes the JSON Schemas)."""

import re
from typing import Any, cast

import msgspec

from lamella.api.call import NoQuery
from lamella.api.route import AnyRoute, Success
from lamella.version import __version__
from lamella.wire.problem import MEDIA_TYPE, Problem, title_of

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
# "Resource[PoolSpec, PoolStatus]" is for the compiler; people and generated clients call it Pool.
_KIND = re.compile(rb"Resource(?:_|\[)(\w+?)Spec(?:__|, )\1Status(?:_|\])")
_PARAMETER = re.compile(r"\{(\w+):str\}")
# Every request can be refused so: not valid, nobody known, not allowed, too large, a defect of ours, not now.
_ALWAYS = (400, 401, 403, 405, 500, 503)
_NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
_IMAGE_NAME = r"^[a-z0-9]+([._:@/-]+[A-Za-z0-9]+)*$"
_SNAPSHOT_NAME = r"^([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?@[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?|snap_[0-9a-z]{26})$"
_PROJECT = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
# Of kinds whose names are not as others are: their form, and how long they can be.
_NAMES = {"image": (_IMAGE_NAME, 255), "snapshot": (_SNAPSHOT_NAME, 127)}
_HEADERS: dict[str, Json] = {
    "If-Match": {"type": "string", "pattern": r'^(\*|"[0-9]{1,18}")$'},
    "Idempotency-Key": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[!-~]+$"},
}


def document(routes: list[AnyRoute]) -> bytes:
    """The document as JSON. Types are named once, in ``components``."""
    types = _types(routes)
    schemas, components = msgspec.json.schema_components([Problem, *types], ref_template=_REF)
    known = {_key(type): schema for type, schema in zip(types, schemas[1:], strict=True)}
    queries = {route.query.__name__ for route in routes}
    paths: dict[str, Json] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, known, components)
    text = msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Lamella",
                "version": __version__,
                "description": "Pools of virtual resources with one interface. Sizes are bytes, CPU is milli-cores, "
                "times are RFC 3339 in UTC. Errors are problem details (RFC 9457) with a stable code and a hint.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {"schemas": {name: components[name] for name in sorted(components) if name not in queries}},
        }
    )
    return _KIND.sub(rb"\1", text)


def _types(routes: list[AnyRoute]) -> list[Any]:
    found: dict[str, Any] = {}
    for route in routes:
        for type in (route.query, route.body, route.answers.type if route.answers else None):
            if type is not None and type is not bytes:
                found[_key(type)] = type
    return list(found.values())


def _key(type: Any) -> str:
    return f"{getattr(type, '__module__', '')}:{type!r}"


def _operation(route: AnyRoute, known: dict[str, Json], components: Json) -> Json:
    parameters = [_path_parameter(name, route.kind) for name in _PARAMETER.findall(route.path)]
    if route.query is not NoQuery:
        parameters += _query_parameters(_resolved(known[_key(route.query)], components))
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": _HEADERS[name]} for name in route.headers
    ]
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.kind or "layer"],
        "parameters": parameters,
        "responses": _responses(route, known),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {"application/octet-stream": {}}
            if route.body is bytes
            else {"application/json": {"schema": known[_key(route.body)]}},
        }
        if route.body is bytes:
            operation["requestBody"]["required"] = False
    return operation


def _responses(route: AnyRoute, known: dict[str, Json]) -> Json:
    responses: Json = {}
    if route.answers is not None:
        responses[str(route.answers.status)] = _success(route.answers, known)
    sized = (413,) if route.body is not None and route.body is not bytes else ()
    for status in sorted({*_ALWAYS, *sized, *route.refuses}):
        responses[str(status)] = {
            "description": title_of(status),
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
        }
    return responses


def _success(answers: Success, known: dict[str, Json]) -> Json:
    content: Json = {media_type: {} for media_type in answers.streams}
    if answers.type is not None:
        content["application/json"] = {"schema": known[_key(answers.type)]}
    response: Json = {"description": title_of(answers.status)}
    if content:
        response["content"] = content
    if answers.etag:
        response["headers"] = {"ETag": {"description": "The revision", "schema": {"type": "string"}, "required": True}}
    return response


def _path_parameter(name: str, kind: str | None) -> Json:
    # A slash in the name of an image is written %2F: it does not end the segment.
    pattern, longest = _NAMES.get(kind or "", (_NAME, 63)) if name != "project" else (_PROJECT, 63)
    schema: Json = {"type": "string", "pattern": pattern, "maxLength": longest, "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(schema: Json) -> list[Json]:
    required = set(cast("list[str]", schema.get("required", [])))
    return [_query_parameter(name, property, name in required) for name, property in schema["properties"].items()]


def _query_parameter(name: str, property: Json, required: bool) -> Json:
    schema = dict(property)
    description = schema.pop("description", None)
    options = schema.get("anyOf")
    if options is not None:
        # "may be null" is how a parameter that may be left out looks as a struct's field; a query has no null.
        options = [option for option in options if option.get("type") != "null"]
        schema.pop("anyOf")
        schema.update(options[0] if len(options) == 1 else {"anyOf": options})
    if schema.get("default", ...) is None:
        schema.pop("default")
    parameter: Json = {"name": name, "in": "query", "required": required, "schema": schema}
    if description:
        parameter["description"] = description
    if schema.get("type") == "array":
        parameter |= {"style": "form", "explode": True}
    return parameter


def _resolved(schema: Json, components: Json) -> Json:
    reference = schema.get("$ref")
    return components[reference.rsplit("/", 1)[1]] if reference else schema
