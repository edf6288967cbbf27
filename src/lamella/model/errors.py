"""One small hierarchy of errors, each with a stable code, a sentence and what to do next.

Every error crosses the API as an RFC 9457 problem (``status`` is its HTTP status) and comes back to a caller of the
library as the same class, found by ``code``.
"""

from typing import ClassVar


class LamellaError(Exception):
    """What went wrong, where, and what to do about it.

    ``message`` is a sentence for a person, ``hint`` says what would be right, ``field`` names the part of the request.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class Invalid(LamellaError):
    """The request cannot be understood or contradicts itself."""

    code = "invalid"
    status = 400


class CannotRun(Invalid):
    """The command is the reason that nothing ran: ``exit_code`` is 127 when it is not there, 126 when it may not be run."""

    code = "cannot-run"

    def __init__(self, message: str, *, hint: str = "", field: str = "", exit_code: int = 127) -> None:
        super().__init__(message, hint=hint or "check the command and the image's PATH", field=field or "command")
        self.exit_code = exit_code


class Unauthenticated(LamellaError):
    """Nobody whom this layer knows asked."""

    code = "unauthenticated"
    status = 401


class Forbidden(LamellaError):
    """Somebody asked for what is not theirs to ask."""

    code = "forbidden"
    status = 403


class NotFound(LamellaError):
    """No such resource in this project."""

    code = "not-found"
    status = 404


class Conflict(LamellaError):
    """The request does not fit the state that the resource is in, or a unique key is taken."""

    code = "conflict"
    status = 409


class StaleRevision(LamellaError):
    """The resource changed since the revision that the writer had read."""

    code = "stale-revision"
    status = 412


class NoRoom(LamellaError):
    """A pool, a range or a host has nothing left of what was asked."""

    code = "no-room"
    status = 409


class Unsupported(LamellaError):
    """This isolation level, driver or host cannot do what was asked; the message says which and why."""

    code = "unsupported"
    status = 422


class Unavailable(LamellaError):
    """What has to answer does not answer now; asking again later may help."""

    code = "unavailable"
    status = 503


class DeadlineExceeded(LamellaError):
    """The thing did not happen within the time given for it."""

    code = "deadline-exceeded"
    status = 504


class Corrupt(LamellaError):
    """Bytes from outside are not what they claim to be: a digest, a header, a path inside an archive."""

    code = "corrupt"
    status = 422


class Internal(LamellaError):
    """A defect of ours, or a tool underneath that failed in a way we do not know."""

    code = "internal"
    status = 500


def _tree(root: type[LamellaError]) -> list[type[LamellaError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def error_for(code: str) -> type[LamellaError]:
    """The class of this page that bears *code*; :class:`Internal` when none does."""
    return next(
        (
            cls
            for cls in _tree(LamellaError)
            if cls.__module__ == __name__ and cls is not LamellaError and cls.code == code
        ),
        Internal,
    )
