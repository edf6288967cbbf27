"""JSON of the API as the command reads it: by path, with a type asked for, and no surprise when something is missing."""

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Document:
    """A value of JSON. What is not there, or of another type than asked for, reads as empty."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def at(self, *path: str) -> object:
        """What is at *path*; None when nothing is."""
        value = self.value
        for name in path:
            if not isinstance(value, dict):
                return None
            members: dict[str, object] = value  # pyright: ignore[reportUnknownVariableType]
            value = members.get(name)
        return value

    def text(self, *path: str) -> str:
        value = self.at(*path)
        return value if isinstance(value, str) else ""

    def integer(self, *path: str) -> "int | None":
        value = self.at(*path)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, *path: str) -> "float | None":
        value = self.at(*path)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def flag(self, *path: str) -> bool:
        return self.at(*path) is True

    def each(self, *path: str) -> "Iterator[Document]":
        """The members of the array at *path*."""
        value = self.at(*path)
        if isinstance(value, list):
            members: list[object] = value  # pyright: ignore[reportUnknownVariableType]
            for member in members:
                yield Document(member)

    def pairs(self, *path: str) -> "Iterator[tuple[str, Document]]":
        """The members of the object at *path*."""
        value = self.at(*path)
        if isinstance(value, dict):
            members: dict[str, object] = value  # pyright: ignore[reportUnknownVariableType]
            for name, member in members.items():
                yield name, Document(member)

    @property
    def string(self) -> str:
        """The value itself, when it is a string."""
        return self.value if isinstance(self.value, str) else ""


def parse(data: bytes) -> Document:
    """The document that *data* is.

    :raise Unavailable: when it is not JSON.
    """
    try:
        return Document(json.loads(data))
    except ValueError as error:
        from lamella.model.errors import Unavailable

        raise Unavailable(
            "the daemon's answer is not JSON", hint="is it a Lamella daemon of this version? `lamella version` asks it"
        ) from error


def render(value: object) -> bytes:
    """*value* as JSON for a request's body."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode()
