"""Python's compiled modules in a new root, made to load without reading their sources.

Under SOURCE_DATE_EPOCH they are compiled to be checked against a hash of the source (PEP 552), and every import then reads and
hashes it: twice the time until a program of some size has started. The root's times are known here, since mmdebstrap clamps them to
the same epoch, so the modules are marked to be checked by time and size, as where SOURCE_DATE_EPOCH is not set.

Run by mmdebstrap as a hook: ``bytecode.py ROOT EPOCH``. It needs the standard library alone.
"""

import os
import struct
import sys
from pathlib import Path

_HEADER = struct.Struct("<III")
_MAGIC = 4
_CHECKED_HASH = 3


def by_time(header: bytes, mtime: int, size: int) -> bytes | None:
    """The 16 bytes that begin a module checked by time, from the *header* of one that is checked by hash; of any other nothing.

    *mtime* (seconds) and *size* (bytes) are the source's.
    """
    if len(header) != _MAGIC + _HEADER.size or _HEADER.unpack_from(header, _MAGIC)[0] != _CHECKED_HASH:
        return None
    return header[:_MAGIC] + _HEADER.pack(0, mtime & 0xFFFFFFFF, size & 0xFFFFFFFF)


def mark(root: Path, epoch: int) -> int:
    """All modules below ``usr`` of *root*, whose files will bear no time after *epoch*. Returns how many there were."""
    marked = 0
    for folder, _, names in os.walk(root / "usr"):
        if not folder.endswith("/__pycache__"):
            continue
        for name in names:
            module = Path(folder, name)
            stem, _, kind = name.partition(".")
            if not kind.endswith(".pyc") or module.is_symlink():
                continue
            try:
                source = (module.parent.parent / f"{stem}.py").lstat()
            except FileNotFoundError:
                continue
            with module.open("r+b") as file:
                header = by_time(file.read(16), min(int(source.st_mtime), epoch), source.st_size)
                if header is not None:
                    file.seek(0)
                    file.write(header)
                    marked += 1
    return marked


if __name__ == "__main__":
    mark(Path(sys.argv[1]), int(sys.argv[2]))
