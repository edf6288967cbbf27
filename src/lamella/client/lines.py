"""Streams of lines: server-sent events (the WHATWG HTML standard, 9.2) and newline-delimited JSON, without I/O."""

from lamella.client.http1 import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_LINE = 16 << 20


class LineReader:
    """Cuts what arrives into lines, without their ends."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> "Iterator[bytes]":
        """The lines that *data* completes.

        :raise WireError: when a line is longer than ``LARGEST_LINE``.
        """
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            yield line
        if len(self._buffer) > LARGEST_LINE:
            raise WireError("a line of the answer is too long")


class ServerEvent:
    """``id`` is the revision, ``event`` is ``created``, ``updated`` or ``deleted``, ``data`` is JSON."""

    __slots__ = ("data", "event", "id")

    def __init__(self, id: str, event: str, data: bytes) -> None:
        self.id = id
        self.event = event
        self.data = data


class EventReader:
    """Cuts what arrives into server-sent events; comments (keep-alives) are passed over."""

    __slots__ = ("_data", "_event", "_id", "_lines")

    def __init__(self) -> None:
        self._lines = LineReader()
        self._id = ""
        self._event = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> "Iterator[ServerEvent]":
        """The events that *data* completes."""
        for line in self._lines.feed(data):
            if line:
                self._field(line)
                continue
            if self._data:
                yield ServerEvent(self._id, self._event or "message", b"\n".join(self._data))
            self._event, self._data = "", []

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id":
            self._id = value.decode("utf-8", "replace")
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"data":
            self._data.append(value)
