"""Files inside an image that lies on this host, found by name: in a directory, or in a tar that can be sought.

Links inside are followed inside, as older docker archives need; nothing of the host is ever reached by one.
"""

import os
import posixpath
import stat
from pathlib import Path
from typing import Protocol

from lamella.host.images import header
from lamella.host.images.beneath import open_beneath
from lamella.host.images.tape import Readable
from lamella.model.errors import Corrupt

_MOST_MEMBERS = 2_000_000
_MOST_LINKS = 8


class Source(Protocol):
    """A tree of files. Names are relative, with ``/``."""

    def has(self, name: str) -> bool: ...

    def open(self, name: str) -> "Section":
        """:raise Corrupt: when there is no such file."""
        ...


class Section:
    """A stretch of a file, read once from its beginning. ``size`` is its length in bytes."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self.size = size
        self._descriptor = descriptor
        self._offset = offset
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = os.pread(self._descriptor, wanted, self._offset) if wanted else b""
        self._offset += len(data)
        self._left -= len(data)
        return data

    def __enter__(self) -> Readable:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def read_document(source: Source, name: str, limit: int) -> bytes:
    """A small file whole.

    :raise Corrupt: when it is not there, or bigger than *limit* bytes.
    """
    section = source.open(name)
    with section as file:
        if section.size > limit:
            raise Corrupt(f"{name} is {section.size} bytes", hint="no honest image has one so big")
        return file.read(section.size)


class Directory:
    """A directory as a source."""

    def __init__(self, path: Path) -> None:
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._root)

    def has(self, name: str) -> bool:
        try:
            self.open(name).__exit__()
        except Corrupt:
            return False
        return True

    def open(self, name: str) -> Section:
        try:
            descriptor = open_beneath(self._root, os.fsencode(name), os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise Corrupt(f"the image lacks {name!r}", hint="it is incomplete: export it again") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise Corrupt(f"{name!r} of the image is not a file", hint="export it again")
        return Section(descriptor, 0, status.st_size)


class TarFile:
    """An uncompressed tar as a source. Reading the headers once tells where everything is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        with path.open("rb") as file:
            tape = _Sought(file.fileno())
            for count, entry in enumerate(header.entries(tape, ended=False)):
                self._note(entry, tape.position)
                if count > _MOST_MEMBERS:
                    raise Corrupt(
                        f"the archive has more than {_MOST_MEMBERS} files", hint="that is beyond what an image may have"
                    )

    def _note(self, entry: header.Entry, offset: int) -> None:
        name = _normal(os.fsdecode(entry.path))
        self._files.pop(name, None)
        self._links.pop(name, None)
        if entry.kind == header.FILE:
            self._files[name] = (offset, entry.size)
        elif entry.kind == header.SYMLINK:
            self._links[name] = _normal(posixpath.join(posixpath.dirname(name), os.fsdecode(entry.link)))
        elif entry.kind == header.HARDLINK:
            self._links[name] = _normal(os.fsdecode(entry.link))

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> Section:
        found = self._find(name)
        if found is None:
            raise Corrupt(f"the image lacks {name!r}", hint="it is incomplete: export it again")
        return Section(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), *found)

    def _find(self, name: str) -> tuple[int, int] | None:
        name = _normal(name)
        for _ in range(_MOST_LINKS):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None


def _normal(name: str) -> str:
    """Relative and without detours; what would climb stays at the top."""
    return posixpath.normpath("/" + name).lstrip("/")


class _Sought:
    """What the tar reader needs of a tape, by seeking instead of reading."""

    def __init__(self, descriptor: int) -> None:
        self.position = 0
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        data = os.pread(self._descriptor, size, self.position)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        self.position += size
