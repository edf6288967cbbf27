"""Every way in which a request can fail, as one kind of document; what nobody expected keeps its trace to the log."""

import logging
import os
from typing import Any

from litestar import Request
from litestar.exceptions import HTTPException

from lamella.api import answer
from lamella.model.errors import Internal, LamellaError
from lamella.wire.problem import Problem, problem_of, title_of

log = logging.getLogger("lamella.api")

# What the router and the body reader refuse, before any of our errors is involved.
_CODES = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
_DETAILS = {
    404: ("there is nothing at this path", "look into /v1/openapi.json for what there is"),
    405: ("this path does not take this method", "the Allow header names those that it takes"),
    413: ("the body is too large", "send at most 8 MiB"),
}


def answer_of(error: Exception, path: str) -> answer.Answer:
    """The problem document for *error* on a request for *path*."""
    if isinstance(error, LamellaError):
        return answer.problem(problem_of(error, instance=path), headers=_headers(error))
    if isinstance(error, HTTPException) and 400 <= error.status_code < 500:
        return _refused(error, path)
    request_id = os.urandom(8).hex()
    log.error("request %s for %s failed unexpectedly", request_id, path, exc_info=error)
    failure = Internal("something went wrong inside the layer", hint=f"look for {request_id} in the daemon's log")
    return answer.problem(problem_of(failure, instance=path))


def handle(request: "Request[Any, Any, Any]", error: Exception) -> Any:
    """Litestar's exception handler for everything. An answer is an ASGI application, as Litestar's own responses become."""
    return _Response(answer_of(error, request.scope["path"]))


class _Response:
    """What Litestar expects of an exception handler: something with ``to_asgi_response``."""

    def __init__(self, inner: answer.Answer) -> None:
        self._inner = inner

    def to_asgi_response(self, **_: Any) -> answer.Answer:
        return self._inner


def _refused(error: HTTPException, path: str) -> answer.Answer:
    status = error.status_code
    detail, hint = _DETAILS.get(status, (error.detail, ""))
    problem = Problem(
        title=title_of(status),
        status=status,
        detail=detail,
        code=_CODES.get(status, "invalid"),
        hint=hint,
        instance=path,
    )
    allow = (error.headers or {}).get("allow")
    if allow is None:
        return answer.problem(problem)
    methods = sorted({name.strip() for name in allow.split(",")} - {"websocket"})
    return answer.problem(problem, headers={"allow": ", ".join(methods)})


def _headers(error: LamellaError) -> dict[str, str]:
    return {"retry-after": "1"} if error.status == 503 else {}
