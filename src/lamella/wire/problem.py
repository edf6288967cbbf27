"""An error on its way between processes: RFC 9457 (problem details), with our stable ``code`` and a ``hint``."""

import http

import msgspec

from lamella.model.errors import Internal, LamellaError, error_for

MEDIA_TYPE = "application/problem+json"


class Problem(msgspec.Struct, kw_only=True):
    """``type`` is ``about:blank`` (the meaning is in ``code``); ``instance`` is the path that was asked."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    field: str = ""
    instance: str = ""


def problem_of(error: LamellaError, *, instance: str = "") -> Problem:
    """*error* as it crosses the wire."""
    return Problem(
        title=title_of(error.status),
        status=error.status,
        detail=_encodable(error.message),
        code=error.code,
        hint=_encodable(error.hint),
        field=_encodable(error.field),
        instance=_encodable(instance),
    )


def title_of(status: int) -> str:
    """The status' own phrase, as RFC 9457 wants it beside ``about:blank``."""
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def error_of(problem: Problem) -> LamellaError:
    """The same error on this side of the wire."""
    return error_for(problem.code)(problem.detail, hint=problem.hint, field=problem.field)


def read_error(data: bytes | str, *, status: int = 500) -> LamellaError:
    """The error in *data*; an :class:`Internal` that quotes it when it is not a problem document."""
    try:
        return error_of(msgspec.json.decode(data, type=Problem))
    except msgspec.MsgspecError:
        text = data if isinstance(data, str) else data.decode(errors="replace")
        return Internal(f"an answer of status {status} was not understood: {text[:200]!r}")


def _encodable(text: str) -> str:
    # A message may quote a path with bytes that are no UTF-8 (surrogateescape); those cannot be encoded as JSON.
    return text.encode(errors="backslashreplace").decode()
