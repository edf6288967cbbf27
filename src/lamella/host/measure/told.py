"""What was told to be broken: the next daemon tells it once more only when it is kept."""

import logging
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.measure.alarms import Line

log = logging.getLogger("lamella.host.measure")

_Lines = dict[str, list[tuple[str, bool]]]


class Told:
    """Lines by instance, in a file that is written when something of it changes. Any thread may call."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lines: _Lines = {}
        self._turn = threading.Lock()
        if file is not None:
            with suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
                self._lines = msgspec.json.decode(file.read_bytes(), type=_Lines)

    def lines(self, id: str) -> list[Line]:
        return list(self._lines.get(id, ()))

    def note(self, id: str, line: Line, *, broken: bool) -> None:
        """*line* was told to be *broken*, or to be kept again."""
        with self._turn:
            kept = [known for known in self._lines.get(id, ()) if known != line]
            self._lines[id] = [*kept, line] if broken else kept
            if not self._lines[id]:
                del self._lines[id]
            self._write()

    def forget(self, id: str) -> None:
        with self._turn:
            if self._lines.pop(id, None) is not None:
                self._write()

    def keep(self, ids: set[str]) -> None:
        """Forget all but *ids*: the others were removed while nobody looked."""
        with self._turn:
            gone = self._lines.keys() - ids
            for id in gone:
                del self._lines[id]
            if gone:
                self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        new = self._file.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(self._lines))
            new.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._file, error)
