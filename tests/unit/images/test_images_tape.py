"""From compressed bytes to plain ones: whole, cut, damaged, bombs."""

import gzip
import hashlib
import io
import lzma
import os

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.images.tape import Bounds, Compression, Intake, Tape, decompress, sniff
from lamella.model.errors import Corrupt

HOW = {
    Compression.NONE: bytes,
    Compression.GZIP: gzip.compress,
    Compression.XZ: lzma.compress,
    Compression.ZSTD: zstandard.ZstdCompressor().compress,
}
PACKED = [Compression.GZIP, Compression.XZ, Compression.ZSTD]
DATA = os.urandom(300_000) + bytes(2_000_000)


def plain(data: bytes, bounds: Bounds | None = None) -> bytes:
    return b"".join(decompress(Intake(io.BytesIO(data)), bounds or Bounds()))


@pytest.mark.parametrize("how", list(Compression))
def test_round_trip_of_one_and_of_several(how: Compression) -> None:
    assert plain(HOW[how](DATA)) == DATA
    if how is not Compression.NONE:
        assert sniff(HOW[how](DATA)) is how
        assert plain(HOW[how](DATA) + HOW[how](b"") + HOW[how](b"more")) == DATA + b"more"
    if how is Compression.GZIP:
        assert plain(gzip.compress(b"a") + bytes(600_000)) == b"a"


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("left", [0.1, 0.5, 0.99])
def test_cut_short(how: Compression, left: float) -> None:
    packed = HOW[how](DATA)
    with pytest.raises(Corrupt, match=f"{how} stream.*damaged"):
        plain(packed[: int(len(packed) * left)])


@given(st.sampled_from(PACKED), st.binary(max_size=2000), st.integers(0, 10**6), st.integers(0, 255))
def test_damage_never_gives_more_than_an_error(how: Compression, data: bytes, at: int, value: int) -> None:
    packed = bytearray(HOW[how](data))
    packed[at % len(packed)] = value
    try:
        plain(bytes(packed))
    except Corrupt as error:
        assert error.hint


@pytest.mark.parametrize("how", PACKED)
def test_bombs(how: Compression) -> None:
    bomb = HOW[how](bytes(32 << 20))
    with pytest.raises(Corrupt, match="bomb"):
        plain(bomb, Bounds(ratio=50, ratio_from=1 << 20))
    with pytest.raises(Corrupt, match="GiB unpacked"):
        plain(bomb, Bounds(size=1 << 20))


def test_intake_counts_and_names() -> None:
    moved: list[int] = []
    intake = Intake(io.BytesIO(DATA), progress=moved.append)
    list(decompress(intake, Bounds()))
    assert intake.taken == len(DATA) == sum(moved)
    assert intake.digest() == f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@given(st.lists(st.binary(min_size=1, max_size=50)), st.lists(st.integers(0, 120)))
def test_tape_gives_every_byte_once(pieces: list[bytes], reads: list[int]) -> None:
    everything = b"".join(pieces)
    tape = Tape(iter(pieces))
    got = b"".join(tape.read(size) for size in reads)
    assert got == everything[: sum(reads)] and tape.position == len(got)
    assert tape.finish() == f"sha256:{hashlib.sha256(everything).hexdigest()}"
    assert tape.length == len(everything)
