"""A small archive in the kernel's own format (cpio "newc": Documentation/driver-api/early-userspace/buffer-format.rst)."""

import stat

import msgspec


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """One file, directory or device; ``device`` is (major, minor)."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    return Entry(path=path, mode=stat.S_IFDIR | 0o755)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    return Entry(path=path, mode=stat.S_IFREG | mode, content=content)


def archive(entries: list[Entry]) -> bytes:
    """The archive of *entries* in this order: the same bytes for the same entries, on every machine."""
    numbered = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join([*numbered, _record(0, Entry(path="TRAILER!!!", mode=0))])


def _record(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    major, minor = entry.device
    values = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, major, minor, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in values)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
