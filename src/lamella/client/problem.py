"""Problems (RFC 9457) back into the error that they were on the other side."""

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.model.errors import LamellaError

_BY_STATUS = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    409: "conflict",
    412: "stale-revision",
    503: "unavailable",
}


def problem(status: int, body: bytes) -> "LamellaError":
    """The error that an answer of *status* with *body* means, whatever the body is."""
    from lamella.model.errors import error_for

    fields = _fields(body)
    code = fields.get("code") or _BY_STATUS.get(status, "invalid" if status < 500 else "internal")
    message = fields.get("detail") or fields.get("title") or f"the daemon answered {status}"
    return error_for(code)(message, hint=fields.get("hint", ""), field=fields.get("field", ""))


def _fields(body: bytes) -> dict[str, str]:
    try:
        document: object = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    pairs: dict[object, object] = document  # pyright: ignore[reportUnknownVariableType]
    return {str(name): value for name, value in pairs.items() if isinstance(value, str)}
