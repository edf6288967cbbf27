"""What a command that ran to its end has left."""

import msgspec

from lamella.model.errors import LamellaError


class CommandFailed(LamellaError):
    """A command ended with another exit code than 0, and ``check`` was asked for. ``result`` is all of it."""

    code = "command-failed"
    status = 422

    def __init__(self, message: str, result: "Result", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.result = result


class Result(msgspec.Struct, kw_only=True, frozen=True):
    """``exit_code`` is 0 to 255, 128 + N after signal N, 124 when its time was up; ``reason`` says why it never ran."""

    command: list[str]
    exit_code: int
    stdout: bytes
    stderr: bytes
    reason: str = ""

    @property
    def text(self) -> str:
        """Standard output as UTF-8, bytes that are none replaced."""
        return self.stdout.decode("utf-8", "replace")

    def check(self) -> "Result":
        """Itself.

        :raise CommandFailed: when the exit code is not 0.
        """
        if self.exit_code == 0:
            return self
        said = self.reason or self.stderr.decode("utf-8", "replace").strip()[-400:]
        raise CommandFailed(f"{self.command[0]} exited with {self.exit_code}", self, hint=said)


class Collector:
    """Gathers frames until the exit, for :class:`Result`."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.stdout = bytearray()
        self.stderr = bytearray()

    def result(self, exit_code: int, reason: str) -> Result:
        return Result(
            command=self.command,
            exit_code=exit_code,
            stdout=bytes(self.stdout),
            stderr=bytes(self.stderr),
            reason=reason,
        )
