"""The stream of a run that could not begin: one frame, and it is over."""

from lamella.model.errors import CannotRun
from lamella.model.stream import Exit, FromProcess, ToProcess


class EndedStream:
    """A :class:`ProcessStream` whose process never was."""

    def __init__(self, error: CannotRun) -> None:
        self._frame: Exit | None = Exit(code=error.exit_code, reason=error.message)

    async def send(self, frame: ToProcess) -> None:
        """Nobody reads it."""

    async def receive(self) -> FromProcess | None:
        frame, self._frame = self._frame, None
        return frame

    async def close(self) -> None:
        self._frame = None
