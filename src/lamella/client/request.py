"""What is asked of the daemon, as a value: the same for both faces and for the command."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PATIENCE = 60.0  # seconds without a byte of an answer after which the daemon is given up


class Request:
    """One HTTP request. ``target`` is path and query as they go on the line.

    ``wait`` is how long the server was asked to wait, in seconds; ``body`` is bytes, or pieces that are sent as they
    come (chunked).
    """

    __slots__ = ("body", "headers", "method", "target", "wait")

    def __init__(
        self,
        method: str,
        target: str,
        *,
        body: "bytes | Iterable[bytes] | None" = None,
        headers: "Mapping[str, str] | None" = None,
        wait: float = 0.0,
    ) -> None:
        self.method = method
        self.target = target
        self.body = body
        self.headers: dict[str, str] = dict(headers or {})
        self.wait = wait

    @property
    def timeout(self) -> float:
        """Seconds without a byte after which the answer is given up."""
        return self.wait + PATIENCE

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does the same as sending it once (RFC 9110, 9.2.2; or an Idempotency-Key)."""
        whole = self.body is None or isinstance(self.body, bytes)
        return whole and (self.method in ("GET", "PUT", "DELETE") or "Idempotency-Key" in self.headers)


class Reply:
    """A whole answer, of a status below 400. ``etag`` is the revision to send as If-Match."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
