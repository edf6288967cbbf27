"""First looks at a file of this host: whether it can be read, how long and how compressed it is. Blocking, made for threads."""

import os
import stat
from pathlib import Path

from lamella.host.images.archive import Section, Source, TarFile
from lamella.host.images.tape import Compression, sniff
from lamella.model.errors import Corrupt, Invalid, NotFound


def whole(path: Path) -> Section:
    """All of the file *path*."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return Section(descriptor, 0, os.fstat(descriptor).st_size)


def size_of(source: Source, name: str) -> int:
    """Bytes of the file *name* in *source*."""
    section = source.open(name)
    with section:
        return section.size


def open_file(path: Path) -> int:
    """A descriptor of the regular file *path*, to read.

    :raise NotFound: when nothing is there.
    :raise Invalid: when it cannot be read or is no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no {path} on this host", hint="name a file or directory of the host") from None
    except (OSError, ValueError) as error:
        raise Invalid(
            f"{path} cannot be read: {error}", hint="name a file or directory of the host", field="source"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid(f"{path} is not a file", hint="name a file or directory of the host", field="source")
    return descriptor


def look(path: Path) -> tuple[int, Compression]:
    """Size in bytes and compression of the file *path*; as :func:`open_file` otherwise."""
    descriptor = open_file(path)
    try:
        return os.fstat(descriptor).st_size, sniff(os.pread(descriptor, 16, 0))
    finally:
        os.close(descriptor)


def archive(path: Path, named: str) -> TarFile:
    """The tar *path*; a person calls it *named*.

    :raise Corrupt: when it is none.
    """
    try:
        return TarFile(path)
    except Corrupt as error:
        raise Corrupt(f"{named} is not a whole tar archive: {error.message}", hint=error.hint) from error


def has_program(root: Path, name: str) -> bool:
    """Whether *root* holds the program *name* where shells lie."""
    return any(os.path.lexists(root / folder / name) for folder in ("bin", "usr/bin"))
