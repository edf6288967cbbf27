"""The routes of the API as functions to a :class:`Request`. Bodies are JSON already, as bytes."""

import os

from lamella.client.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
# For how many seconds a verb inside may wait for a guest that boots.
BOOTING = 90.0
_JSON = {"Content-Type": "application/json"}


def quote(text: str) -> str:
    """*text* percent-encoded as one segment of a path, or one value of a query (RFC 3986)."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


def target(*segments: str, query: "Iterable[tuple[str, object]]" = ()) -> str:
    """The path of *segments* below ``/v1``, with what of *query* is neither None nor False."""
    path = "/".join(("/v1", *(quote(segment) for segment in segments)))
    pairs = [
        f"{name}={'true' if value is True else quote(str(value))}"
        for name, value in query
        if value is not None and value is not False
    ]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def plural(kind: str) -> str:
    """As :func:`lamella.model.kinds.plural`, which would bring every kind along."""
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def about() -> Request:
    return Request("GET", "/v1")


def doctor() -> Request:
    return Request("GET", target("doctor"), wait=60)


def collect_images() -> Request:
    return Request("POST", target("images", "collect"), wait=600)


def find(
    project: str, kind: str, *, labels: "Mapping[str, str] | None" = None, limit: "int | None" = None, cursor: str = ""
) -> Request:
    """One page of *kind*; the cursor comes from the page before."""
    query: list[tuple[str, object]] = [("label", f"{key}={value}") for key, value in (labels or {}).items()]
    query += [("limit", limit), ("cursor", cursor or None)]
    return Request("GET", target("projects", project, plural(kind), query=query))


def watch(project: str, kind: str, *, since: "int | None" = None) -> Request:
    """Every change of *kind* after the revision *since*, as server-sent events; the event ``problem`` ends it."""
    return Request("GET", target("projects", project, plural(kind), query=[("watch", True), ("since", since)]))


def get(project: str, kind: str, name: str) -> Request:
    return Request("GET", target("projects", project, plural(kind), name))


def remove(
    project: str,
    kind: str,
    name: str,
    *,
    force: bool = False,
    wait: "float | None" = None,
    revision: "int | None" = None,
) -> Request:
    query = [("force", force), ("wait", wait)]
    return Request(
        "DELETE", target("projects", project, plural(kind), name, query=query), headers=_match(revision), wait=wait or 0
    )


def patch(
    project: str, kind: str, name: str, body: bytes, *, revision: "int | None" = None, wait: "float | None" = None
) -> Request:
    """A JSON merge patch (:class:`lamella.model.requests.ResourcePatch`)."""
    headers = {"Content-Type": "application/merge-patch+json", **_match(revision)}
    path = target("projects", project, plural(kind), name, query=[("wait", wait)])
    return Request("PATCH", path, body=body, headers=headers, wait=wait or 0)


def create_instance(project: str, body: bytes, *, wait: "float | None" = None) -> Request:
    return _create(project, "instances", body, wait)


def bring_image(project: str, body: bytes) -> Request:
    """Pull, import or build (:class:`lamella.model.requests.ImageCreate`); the answer is an operation."""
    return _create(project, "images", body, None)


def _create(project: str, kinds: str, body: bytes, wait: "float | None") -> Request:
    headers = {**_JSON, "Idempotency-Key": os.urandom(16).hex()}
    return Request(
        "POST", target("projects", project, kinds, query=[("wait", wait)]), body=body, headers=headers, wait=wait or 0
    )


def _match(revision: "int | None") -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def instance_verb(
    project: str, name: str, verb: str, *, body: "bytes | None" = None, wait: "float | None" = None
) -> Request:
    """``start``, ``stop``, ``restart``, ``kill``, ``pause``, ``suspend`` or ``resume``."""
    path = target("projects", project, "instances", name, verb, query=[("wait", wait)])
    return Request("POST", path, body=body, headers=_JSON if body is not None else None, wait=wait or 0)


def fork(project: str, name: str, body: bytes) -> Request:
    """Make copies of a running instance (:class:`lamella.model.requests.InstanceFork`); the answer is an operation. Sent twice it makes
    them once."""
    headers = {**_JSON, "Idempotency-Key": os.urandom(16).hex()}
    return Request("POST", target("projects", project, "instances", name, "fork"), body=body, headers=headers, wait=60)


def wait_for(project: str, name: str, what: str, timeout: float) -> Request:
    """Answers when the instance is ``settled``, ``running``, ``stopped`` or ``removed``."""
    path = target("projects", project, "instances", name, "wait", query=[("for", what), ("timeout", f"{timeout:g}")])
    return Request("GET", path, wait=timeout)


def screenshot(project: str, name: str) -> Request:
    """The answer is a PNG."""
    return Request("GET", target("projects", project, "instances", name, "screenshot"))


def send_input(project: str, name: str, body: bytes, *, wait: float) -> Request:
    """Type, press, click (:class:`lamella.model.board.Input`); *wait* is how long that may take."""
    return Request("POST", target("projects", project, "instances", name, "input"), body=body, headers=_JSON, wait=wait)


def desktop(project: str, name: str, *, kind: str) -> Request:
    """A DesktopTicket."""
    return Request("POST", target("projects", project, "instances", name, "desktop", query=[("kind", kind)]))


def screen_stream(project: str, name: str, *, kind: str) -> Request:
    """A WebSocket that carries a viewer's connection in frames of MessagePack: up ``stdin``, down ``stdout``."""
    return Request("GET", target("projects", project, "instances", name, "screen", query=[("kind", kind)]))


def dump(project: str, name: str, *, crash: bool = False) -> Request:
    """The answer is an ELF core; the guest's memory is gathered first."""
    return Request("GET", target("projects", project, "instances", name, "dump", query=[("crash", crash)]), wait=1800)


def export_image(project: str, name: str, *, format: str) -> Request:
    """The answer is a disk in *format*; it is converted first."""
    return Request("GET", target("projects", project, "images", name, "export", query=[("format", format)]), wait=3600)


def levels() -> Request:
    """A Comparison of all isolation levels."""
    return Request("GET", target("levels"))


def why_not(level: str) -> Request:
    """A WhyNot."""
    return Request("GET", target("levels", level, "why-not"))


def instance_page(project: str, name: str, page: str) -> Request:
    """``contract`` or ``explain``."""
    return Request("GET", target("projects", project, "instances", name, page))


def logs(
    project: str, name: str, *, follow: bool = False, tail: "int | None" = None, since: "str | None" = None
) -> Request:
    """``since`` is an RFC 3339 time. The answer is one LogEntry a line."""
    query = [("follow", follow), ("tail", tail), ("since", since)]
    return Request("GET", target("projects", project, "instances", name, "logs", query=query))


def usage(project: str) -> Request:
    return Request("GET", target("projects", project, "usage"))


def file_info(project: str, name: str, path: str) -> Request:
    return Request("GET", target("projects", project, "instances", name, "files", query=[("path", path)]), wait=BOOTING)


def list_directory(project: str, name: str, path: str) -> Request:
    return Request(
        "GET", target("projects", project, "instances", name, "files", "list", query=[("path", path)]), wait=BOOTING
    )


def read_file(project: str, name: str, path: str) -> Request:
    return Request(
        "GET", target("projects", project, "instances", name, "files", "content", query=[("path", path)]), wait=BOOTING
    )


def write_file(
    project: str,
    name: str,
    path: str,
    data: "bytes | Iterable[bytes]",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
) -> Request:
    query = [("path", path), ("mode", f"{mode:04o}"), ("uid", uid), ("gid", gid)]
    where = target("projects", project, "instances", name, "files", "content", query=query)
    return Request("PUT", where, body=data, headers={"Content-Type": "application/octet-stream"}, wait=BOOTING)


def make_directory(project: str, name: str, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Request:
    query = [("path", path), ("mode", f"{mode:04o}"), ("uid", uid), ("gid", gid)]
    return Request(
        "POST", target("projects", project, "instances", name, "files", "directory", query=query), wait=BOOTING
    )


def exec_stream(project: str, name: str) -> Request:
    """A WebSocket: first an ExecSpec, then frames, all MessagePack."""
    return Request("GET", target("projects", project, "instances", name, "exec"))


def attach_stream(project: str, name: str, *, start: bool = False) -> Request:
    """A WebSocket with the instance's own streams; *start* begins its command when the stream is in place."""
    return Request("GET", target("projects", project, "instances", name, "attach", query=[("start", start)]))
