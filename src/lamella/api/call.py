"""One request as a handler sees it: who, where, what; and how its parts are read from bytes that anybody may have written."""

import math
import re
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar, cast
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import InternalServerException

from lamella.api.face import LayerFace
from lamella.model.errors import Invalid, NotFound, Unavailable
from lamella.model.ids import check_image_name, check_name, check_project, check_snapshot_name, is_id
from lamella.model.requests import Principal
from lamella.model.validation import invalid
from lamella.wire.pump import Gone

Connection = ASGIConnection[Any, Any, Any, Any]
QueryT = TypeVar("QueryT", bound=msgspec.Struct)
BodyT = TypeVar("BodyT")

LARGEST_BODY = 8 << 20
_LARGEST_REVISION = 1 << 62
# An entity tag has quotes (RFC 9110, 8.8.3), and If-Match takes no weak ones (13.1.1).
_ETAG = re.compile(r'"([0-9]{1,18})"', re.ASCII)


class NoQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The query of a route that has none."""


class Call(Generic[QueryT]):
    """``project`` and ``name`` are checked names, empty where the path has none; ``query`` is typed by the route."""

    __slots__ = ("connection", "layer", "name", "project", "query", "who")

    def __init__(
        self, layer: LayerFace, connection: Connection, who: Principal, kind: str | None, query: type[QueryT]
    ) -> None:
        self.layer = layer
        self.connection = connection
        self.who = who
        path = connection.scope["path_params"]
        self.project = check_project(segment(path["project"])) if "project" in path else ""
        self.name = _checked_name(kind, segment(path["name"])) if "name" in path else ""
        self.query = read_query(connection.scope["query_string"], query)

    @property
    def path(self) -> str:
        """The path as it was asked, percent-encoded."""
        return self.connection.scope["path"]

    def gone(self) -> bool:
        """Whether a WebSocket's client hung up, as far as its server can tell."""
        return cast("Gone", self.connection.scope["state"].get("gone", bool))()

    def header(self, name: str) -> str | None:
        """A request header's value; the first when there are several."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self.connection.scope["headers"] if key == wanted), None)

    @property
    def expected(self) -> int | None:
        """The revision in If-Match; ``None`` when there is none, or ``*``.

        :raise Invalid: when it is something else than one of our ETags.
        """
        value = self.header("if-match")
        if value is None or value.strip() == "*":
            return None
        found = _ETAG.fullmatch(value.strip())
        if found is None or int(found[1]) > _LARGEST_REVISION:
            raise Invalid(
                f"If-Match {value!r} is no revision",
                hint='send the ETag that you have read, like "42"',
                field="If-Match",
            )
        return int(found[1])

    @property
    def idempotency_key(self) -> str | None:
        """:raise Invalid: when the Idempotency-Key is empty, too long or not printable ASCII."""
        key = self.header("idempotency-key")
        if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
            raise Invalid(
                "the Idempotency-Key cannot be used",
                hint="send 1 to 255 printable ASCII characters",
                field="Idempotency-Key",
            )
        return key

    async def body(self, type: type[BodyT], *, default: BodyT | None = None) -> BodyT:
        """The JSON body as *type*; an empty one is *default* where there is one.

        :raise Invalid: when it is not JSON, or not of that type; names the field.
        """
        data = b"".join([chunk async for chunk in self.stream()])
        if not data and default is not None:
            return default
        return read_json(data, type)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body as it comes, not gathered anywhere.

        :raise Unavailable: when the client goes before it has sent all: a part is never taken for the whole.
        """
        try:
            async for chunk in self._request.stream():
                if chunk:
                    yield chunk
        except InternalServerException as error:
            raise Unavailable("the client went away while it was sending") from error

    @property
    def _request(self) -> "Request[Any, Any, Any]":
        return cast("Request[Any, Any, Any]", self.connection)


_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def read_json(data: bytes, type: type[BodyT]) -> BodyT:
    """*data* as *type*.

    :raise Invalid: when it is not.
    """
    decoder = _decoders.get(type)
    if decoder is None:
        decoder = _decoders[type] = msgspec.json.Decoder(type)
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise invalid(str(error), "the body") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not JSON: {error}", hint="send a JSON object, encoded as UTF-8") from error
    except RecursionError as error:
        raise Invalid("the body is nested too deeply", hint="send a flatter JSON object") from error


def read_query(data: bytes, type: type[QueryT]) -> QueryT:
    """The query string as the struct *type*; a field that is a list takes a parameter as often as it comes.

    :raise Invalid: when it is not of that shape, or a parameter is not known, or comes twice.
    """
    if not data:
        try:
            return msgspec.convert({}, type)
        except msgspec.ValidationError as error:
            raise invalid(str(error), "the query") from error
    try:
        pairs = parse_qsl(data.decode(), keep_blank_values=True, errors="strict", max_num_fields=200)
    except ValueError as error:
        raise Invalid(
            "the query string cannot be read", hint="percent-encode it as UTF-8, with at most 200 parameters"
        ) from error
    lists = _list_fields(type)
    values: dict[str, str | list[str]] = {}
    for name, value in pairs:
        if name in lists:
            cast("list[str]", values.setdefault(name, [])).append(value)
        elif name in values:
            raise Invalid(f"the parameter {name!r} comes twice", field=name)
        else:
            values[name] = value
    try:
        query = msgspec.convert(values, type, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(str(error), "the query") from error
    for field in msgspec.structs.fields(type):
        value = getattr(query, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise Invalid(f"{field.encode_name} is not a number of seconds", field=field.encode_name)
    return query


_lists: dict[type[msgspec.Struct], frozenset[str]] = {}


def _list_fields(type: type[msgspec.Struct]) -> frozenset[str]:
    if type not in _lists:
        _lists[type] = frozenset(
            field.encode_name for field in msgspec.structs.fields(type) if field.default_factory is list
        )
    return _lists[type]


def segment(text: str) -> str:
    """One path segment, its percent-encoding undone.

    :raise Invalid: when what it encodes is not UTF-8.
    """
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise Invalid("the path is not UTF-8", hint="percent-encode names as UTF-8") from error


def canonical(raw_path: bytes) -> str:
    """The path as the router matches it: every segment in one and the same percent-encoding, so that ``%2F`` stays in its segment.

    :raise Invalid: when it is not UTF-8 underneath.
    :raise NotFound: when a segment is empty: an empty name must not make one thing's path into another's.
    """
    path = raw_path.partition(b"?")[0].decode("latin-1")
    if "//" in path:
        raise NotFound("there is an empty part in this path", hint="look whether a name is missing")
    if "%" not in path and path.isascii():
        return path
    return "/".join(quote(segment(part), safe="-._~:@!$&'()*+,;=") for part in path.split("/"))


def _checked_name(kind: str | None, text: str) -> str:
    if is_id(text):
        return text
    check = {"image": check_image_name, "snapshot": check_snapshot_name}.get(kind or "", check_name)
    return check(text)
