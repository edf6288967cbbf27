"""Tar headers as they come from strangers: ustar, GNU and pax (pax(1), POSIX.1-2017; tar(5)), strict and bounded.

Why not the standard library's reader: it takes a damaged header in the middle for the end of the archive, reads an extended
header of any length into memory, and searches it with patterns that a hostile one makes slow. Tests hold the two side by side.
"""

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Protocol

import msgspec

from lamella.model.errors import Corrupt

BLOCK = 512
_LARGEST_EXTENSION = 1 << 20
_ZERO = bytes(BLOCK)
_LARGEST_ID = (1 << 32) - 2  # the one above means "leave as it is" to chown(2)
_LARGEST_SIZE = 1 << 62
_LARGEST_TIME = (1 << 63) - 1

FILE, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_CONTIGUOUS, _OLD_FILE = b"7", b"\0"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _PAX_SOLARIS, _SPARSE = b"L", b"K", b"x", b"g", b"X", b"S"
_KINDS = frozenset({FILE, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO})


class Entry(msgspec.Struct, kw_only=True):
    """One member. ``kind`` is the type flag, ``mtime`` nanoseconds since 1970, ``mode`` permission bits; bytes as they came."""

    path: bytes
    kind: bytes
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    link: bytes = b""
    xattrs: dict[bytes, bytes] = {}


class Tape(Protocol):
    """What is read in order; ``position`` counts bytes. ``read`` gives fewer than asked only at the end."""

    position: int

    def read(self, size: int) -> bytes: ...

    def skip(self, size: int) -> None: ...


def shown(path: bytes) -> str:
    """*path* as a sentence may show it: quoted, no control characters, of bounded length."""
    text = path.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def entries(tape: Tape, *, ended: bool) -> Iterator[Entry]:
    """The members of *tape*. Whoever asks for the next has read the data of the last, or it is passed over.

    With *ended* the archive must close with its end mark, as everything that is not held by a digest should.

    :raise Corrupt: when a header is damaged, unknown or too big, or the archive is cut short.
    """
    defaults: dict[bytes, bytes] = {}
    extended: dict[bytes, bytes] = {}
    while True:
        block = tape.read(BLOCK)
        if not block and not ended and not extended:
            return
        if len(block) < BLOCK:
            raise Corrupt("the archive is cut short", hint="fetch or export it again")
        if block == _ZERO:
            if extended or tape.read(BLOCK).strip(b"\0"):
                raise Corrupt("the archive has a hole in its middle", hint="fetch or export it again")
            return
        _check(block)
        flag = block[156:157]
        size = _number(block[124:136], "size", most=_LARGEST_SIZE)
        if flag in (_PAX, _PAX_SOLARIS):
            extended |= _records(_extension(tape, size))
        elif flag == _PAX_GLOBAL:
            defaults |= _records(_extension(tape, size))
        elif flag == _LONG_NAME:
            extended[b"path"] = _extension(tape, size).split(b"\0", 1)[0]
        elif flag == _LONG_LINK:
            extended[b"linkpath"] = _extension(tape, size).split(b"\0", 1)[0]
        else:
            entry = _entry(block, flag, size, {**defaults, **extended} if defaults else extended)
            extended = {}
            end = tape.position + (entry.size + BLOCK - 1) // BLOCK * BLOCK
            yield entry
            tape.skip(end - tape.position)


def _check(block: bytes) -> None:
    stored = _number(block[148:156], "checksum", most=1 << 24)
    plain = sum(block[:148]) + 256 + sum(block[156:])
    if stored != plain:
        high = sum(1 for byte in block[:148] + block[156:] if byte > 127)
        if stored != plain - 256 * high:  # some old tars summed signed characters
            raise Corrupt(
                "a header of the archive does not match its checksum", hint="it is damaged, or not a tar archive"
            )


def _number(field: bytes, name: str, *, most: int, least: int = 0) -> int:
    """Octal digits, or GNU's base 256 when the first bit is set."""
    if field[0] & 0x80:
        value = (
            int.from_bytes(field, "big", signed=True)
            if field[0] & 0x40
            else int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        )
    else:
        digits = field.split(b"\0", 1)[0].strip()
        try:
            value = int(digits, 8) if digits else 0
        except ValueError:
            value = -1
    return _bounded(value, name, most=most, least=least)


def _bounded(value: int, name: str, *, most: int, least: int = 0) -> int:
    if not least <= value <= most:
        raise Corrupt(f"a header of the archive has no valid {name}", hint="it is damaged, or not a tar archive")
    return value


def _extension(tape: Tape, size: int) -> bytes:
    if size > _LARGEST_EXTENSION:
        raise Corrupt("an extended header of the archive is bigger than a mebibyte", hint="no honest archive has one")
    padded = (size + BLOCK - 1) // BLOCK * BLOCK
    data = tape.read(padded)
    if len(data) < padded:
        raise Corrupt("the archive is cut short", hint="fetch or export it again")
    return data[:size]


def _records(data: bytes) -> dict[bytes, bytes]:
    """pax records, ``LENGTH KEY=VALUE\\n`` each."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 12)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not at < end <= len(data) or data[end - 1] != 0x0A or not equals or not key:
            raise Corrupt("an extended header of the archive is damaged", hint="fetch or export it again")
        records[key] = value
        at = end
    return records


def _entry(block: bytes, flag: bytes, size: int, extended: dict[bytes, bytes]) -> Entry:
    path = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        path = block[345:500].split(b"\0", 1)[0] + b"/" + path
    if flag in (_OLD_FILE, _CONTIGUOUS):
        flag = DIRECTORY if flag == _OLD_FILE and extended.get(b"path", path).endswith(b"/") else FILE
    if flag == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in extended):
        raise Corrupt(
            f"{shown(path)} is stored as a sparse file, which images do not know",
            hint="pack the archive without --sparse",
        )
    if flag not in _KINDS:
        raise Corrupt(
            f"{shown(path)} is of the tar type {flag!r}, which images do not know", hint="pack it with --format=pax"
        )
    entry = Entry(
        path=path,
        kind=flag,
        size=size,
        mode=_number(block[100:108], "mode", most=1 << 32) & 0o7777,
        uid=_number(block[108:116], "owner", most=_LARGEST_ID),
        gid=_number(block[116:124], "group", most=_LARGEST_ID),
        mtime=_number(block[136:148], "time", most=1 << 62, least=-(1 << 62)) * 10**9,
        link=block[157:257].split(b"\0", 1)[0],
    )
    if extended:
        _extend(entry, extended)
    entry.mtime = max(-_LARGEST_TIME, min(_LARGEST_TIME, entry.mtime))
    if flag != FILE:
        entry.size = 0
    if b"\0" in entry.path or b"\0" in entry.link:
        raise Corrupt(f"the name {shown(entry.path)} holds a zero byte", hint="no honest archive has one")
    return entry


def _extend(entry: Entry, extended: dict[bytes, bytes]) -> None:
    for key, value in extended.items():
        if key == b"path":
            entry.path = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = _decimal(value, "size", _LARGEST_SIZE)
        elif key == b"uid":
            entry.uid = _decimal(value, "owner", _LARGEST_ID)
        elif key == b"gid":
            entry.gid = _decimal(value, "group", _LARGEST_ID)
        elif key == b"mtime":
            entry.mtime = _time(value)
        elif key.startswith(b"SCHILY.xattr."):
            entry.xattrs = {**entry.xattrs, key[13:]: value}


def _decimal(value: bytes, name: str, most: int) -> int:
    return _bounded(int(value) if value.isdigit() and len(value) < 24 else -1, name, most=most)


def _time(value: bytes) -> int:
    try:
        seconds = Decimal(value.decode("ascii")) if len(value) < 64 else Decimal("NaN")
    except (InvalidOperation, UnicodeDecodeError):
        seconds = Decimal("NaN")
    if not seconds.is_finite() or abs(seconds) > 1 << 62:
        raise Corrupt("a header of the archive has no valid time", hint="it is damaged, or not a tar archive")
    return int(seconds * 10**9)
