"""Tar headers: whatever the standard library writes is read the same; what is damaged is refused."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.images.header import Entry, entries, shown
from lamella.host.images.tape import Tape
from lamella.model.errors import Corrupt, LamellaError

NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=300).filter(
    lambda name: name.strip("/") != ""
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(KINDS)
    data = draw(st.binary(max_size=1200)) if info.type == tarfile.REGTYPE else b""
    info.size = len(data)
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
    info.mtime = draw(st.integers(0, 2**33))
    info.linkname = draw(NAMES) if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info, data


def read(data: bytes, *, ended: bool = True, piece: int = 700) -> list[tuple[Entry, bytes]]:
    tape = Tape(data[at : at + piece] for at in range(0, len(data), piece))
    return [(entry, tape.read(entry.size)) for entry in entries(tape, ended=ended)]


def written(all_members: list[tuple[tarfile.TarInfo, bytes]], format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in all_members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@given(st.lists(members(), max_size=5), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(1, 3000))
def test_reads_what_the_standard_library_writes(
    all_members: list[tuple[tarfile.TarInfo, bytes]], format: int, piece: int
) -> None:
    archive = written(all_members, format)
    expected = tarfile.open(fileobj=io.BytesIO(archive)).getmembers()  # noqa: SIM115
    found = read(archive, piece=piece)
    assert len(found) == len(expected)
    for (entry, data), theirs, (_, original) in zip(found, expected, all_members, strict=True):
        assert entry.path.rstrip(b"/") == theirs.name.encode().rstrip(b"/")
        assert entry.kind == theirs.type
        assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (
            theirs.mode,
            theirs.uid,
            theirs.gid,
            int(theirs.mtime) * 10**9,
        )
        assert entry.link == theirs.linkname.encode()
        assert data == original


@given(st.lists(members(), min_size=1, max_size=3), st.integers(0, 10**6), st.integers(1, 255))
def test_damage_is_an_error_with_a_sentence(
    all_members: list[tuple[tarfile.TarInfo, bytes]], at: int, change: int
) -> None:
    archive = bytearray(written(all_members, tarfile.PAX_FORMAT))
    archive[at % len(archive)] ^= change
    try:
        read(bytes(archive))
    except LamellaError as error:
        assert error.message and error.hint


@given(st.binary(max_size=4096))
def test_noise_is_never_taken_for_an_archive(noise: bytes) -> None:
    if noise.strip(b"\0"):
        with pytest.raises(Corrupt):
            read(noise)


def test_a_damaged_header_in_the_middle_is_not_the_end() -> None:
    """The standard library's reader stops there and says nothing."""
    archive = bytearray(written([(tarfile.TarInfo("a"), b""), (tarfile.TarInfo("b"), b"")], tarfile.USTAR_FORMAT))
    archive[512] ^= 1
    with tarfile.open(fileobj=io.BytesIO(archive)) as theirs:
        assert theirs.getnames() == ["a"]
    with pytest.raises(Corrupt, match="checksum"):
        read(bytes(archive))


def test_end_mark() -> None:
    archive = written([(tarfile.TarInfo("a"), b"")], tarfile.USTAR_FORMAT)[:512]
    assert [entry.path for entry, _ in read(archive, ended=False)] == [b"a"]
    with pytest.raises(Corrupt, match="cut short"):
        read(archive, ended=True)
    with pytest.raises(Corrupt, match="hole"):
        read(archive + bytes(512) + archive)


def pax(records: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", len(records)
    padded = records + bytes(-len(records) % 512)
    return info.tobuf(tarfile.USTAR_FORMAT) + padded + tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


BROKEN = [
    b"5 a=1",
    b"6 a=1\nrest",
    b"0 a=1\n",
    b"99 a=1\n",
    b"-6 a=1\n",
    b"x",
    b"5 =a\n",
    b"6 a-1\n",
    b" " * 20,
    b"9" * 4000 + b" a=1\n",
]
LYING = [
    (b"mtime", b"nan"),
    (b"mtime", b"1e99"),
    (b"uid", b"-1"),
    (b"gid", b"1" * 30),
    (b"size", b"9" * 20),
    (b"path", b"a\0b"),
    (b"uid", b"x"),
]


@pytest.mark.parametrize("records", [*BROKEN, *(record(key, value) for key, value in LYING)])
def test_damaged_extended_headers(records: bytes) -> None:
    with pytest.raises(Corrupt):
        read(pax(records))


def test_extended_headers_apply() -> None:
    told = ((b"mtime", b"-1.25"), (b"uid", b"70000"), (b"path", b"b c"), (b"SCHILY.xattr.user.x", b"y\n="))
    ((entry, _),) = read(pax(b"".join(record(key, value) for key, value in told)))
    assert (entry.mtime, entry.uid, entry.path, entry.xattrs) == (-1_250_000_000, 70000, b"b c", {b"user.x": b"y\n="})


def test_shown_is_safe_for_a_terminal() -> None:
    assert "\x1b" not in shown(b"\x1b[31m\xff" + b"a" * 1000) and len(shown(b"a" * 1000)) < 220
