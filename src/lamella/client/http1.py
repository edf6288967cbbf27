"""HTTP/1.1 as a client speaks it, without I/O (RFC 9112): requests to bytes, bytes to a response.

h11 does this too, and the tests hold this reader against it; it is not used here because importing it takes as long as
the whole of ``lamella ps`` should (docs/library.md has the figures).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.client.request import Request

LARGEST_HEAD = 64 << 10
_LARGEST_LINE = 4 << 10


class WireError(Exception):
    """What came is not what the protocol allows, or the other end went away in the middle."""


def head(request: "Request", host: str, extra: "dict[str, str] | None" = None) -> bytes:
    """The request line and headers of *request*, up to the empty line.

    :raise WireError: when a part of it would end its line.
    """
    fields = {"Host": host, "User-Agent": "lamella", "Accept": "*/*", **request.headers, **(extra or {})}
    if isinstance(request.body, bytes):
        fields["Content-Length"] = str(len(request.body))
    elif request.body is not None:
        fields["Transfer-Encoding"] = "chunked"
    elif request.method in ("POST", "PUT", "PATCH"):
        fields["Content-Length"] = "0"
    lines = [f"{request.method} {request.target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    text = "\r\n".join(lines)
    if (
        text.count("\n") != len(lines) - 1
        or text.count("\r") != len(lines) - 1
        or "\0" in text
        or " " in request.target
    ):
        raise WireError("a part of the request would break its line")
    return (text + "\r\n\r\n").encode("utf-8")


def chunk(data: bytes) -> bytes:
    """*data* as one chunk; empty data is the last one."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class ResponseReader:
    """Reads one response: ``feed`` what arrives, then look at ``status``, ``headers``, ``take()`` and ``done``.

    ``headers`` have lower-case names. Interim answers (1xx but 101) are passed over. After ``done``, ``rest`` holds
    what arrived behind the response (the first frames, after 101).
    """

    __slots__ = ("_body", "_bodyless", "_buffer", "_left", "_state", "headers", "reusable", "started", "status")

    def __init__(self, method: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.reusable = False
        self.started = False
        self._bodyless = method == "HEAD"
        self._state = "head"
        self._buffer = bytearray()
        self._body: list[bytes] = []
        self._left = 0

    @property
    def done(self) -> bool:
        return self._state == "done"

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def take(self) -> bytes:
        """The part of the body that has arrived since the last call."""
        data = b"".join(self._body)
        self._body.clear()
        return data

    def feed(self, data: bytes) -> None:
        """Take in what arrived; empty *data* is the end of the connection.

        :raise WireError: when it is no HTTP/1.1 response, or ended too early.
        """
        if not data:
            if self._state == "until-close":
                self._state = "done"
            elif self._state != "done":
                raise WireError("the daemon closed the connection in the middle of its answer")
            return
        self.started = True
        self._buffer += data
        while self._step():
            pass

    def _step(self) -> bool:
        """One transition; whether there may be another with what is in the buffer."""
        state = self._state
        if state == "head":
            return self._head()
        if state in ("length", "chunk"):
            return self._counted(state)
        if state == "until-close":
            return self._give(len(self._buffer))
        if state == "chunk-size":
            line = self._line()
            if line is None:
                return False
            size = line.split(b";", 1)[0].strip()
            if not size or len(size) > 15 or size.strip(b"0123456789abcdefABCDEF"):
                raise WireError("the answer's chunk size is not a number")
            self._left = int(size, 16)
            self._state = "chunk" if self._left else "trailers"
            return True
        if state == "chunk-end":
            line = self._line()
            if line:
                raise WireError("the answer's chunk is longer than it said")
            if line is not None:
                self._state = "chunk-size"
            return line is not None
        if state == "trailers":
            line = self._line()
            if line == b"":
                self._state = "done"
            return line is not None
        return False

    def _counted(self, state: str) -> bool:
        size = min(self._left, len(self._buffer))
        self._left -= size
        self._give(size)
        if self._left:
            return False
        self._state = "done" if state == "length" else "chunk-end"
        return True

    def _give(self, size: int) -> bool:
        if size:
            self._body.append(bytes(self._buffer[:size]))
            del self._buffer[:size]
        return False

    def _line(self) -> "bytes | None":
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > _LARGEST_LINE:
                raise WireError("a line of the answer is too long")
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        return line

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > LARGEST_HEAD or not self._buffer.startswith(b"HTTP/1."[: len(self._buffer)]):
                raise WireError("what answers there does not speak HTTP")
            return False
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, tail = first.partition(" ")
        code = tail[:3]
        if (
            version not in ("HTTP/1.1", "HTTP/1.0")
            or len(code) != 3
            or not (code.isascii() and code.isdigit())
            or code < "100"
        ):
            raise WireError("what answers there does not speak HTTP")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise WireError("a header of the answer has no name")
            headers[name.lower()] = value.strip()
        status = int(code)
        if 100 <= status < 200 and status != 101:
            return True
        self.status, self.headers = status, headers
        self.reusable = version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower()
        self._begin_body(headers)
        return True

    def _begin_body(self, headers: dict[str, str]) -> None:
        if self._bodyless or self.status in (101, 204, 304):
            self._state = "done"
        elif "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked":
                raise WireError("the answer comes in an encoding that was not asked for")
            self._state = "chunk-size"
        elif "content-length" in headers:
            length = headers["content-length"]
            if not (length.isascii() and length.isdigit()) or len(length) > 18:
                raise WireError("the answer's length is not a number")
            self._left = int(length)
            self._state = "length" if self._left else "done"
        else:
            self._state, self.reusable = "until-close", False
