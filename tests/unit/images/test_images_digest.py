"""Digests of disks: what is written down in docs/images.md, by whatever way they are computed."""

import hashlib
import os
import random
import tempfile
import threading
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.images.formats.behind import follow
from lamella.host.images.formats.digest import CHUNK, digest_disk, disk_digest, list_size

MIB = 1 << 20


def by_the_book(data: bytes) -> str:
    """The definition, word for word."""
    document = b"lamella.disk.v1\n" + len(data).to_bytes(8, "big")
    for at in range(0, len(data), MIB):
        document += hashlib.sha256(data[at : at + MIB]).digest()
    assert len(document) == list_size(len(data))
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


def digest(path: Path, known: dict[int, bytes] | None = None) -> str:
    told: list[int] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = path.stat().st_size
        found = digest_disk(descriptor, size, threading.Event(), told.append, known=known)
        assert known is not None or sum(told) == size
        return found
    finally:
        os.close(descriptor)


extents = st.lists(
    st.tuples(st.integers(0, 6 * MIB), st.integers(1, MIB + 4096), st.sampled_from([b"\0", b"\1", b"\xff"])), max_size=5
)


@given(extents, st.integers(1, 13000))
@settings(max_examples=40, deadline=None)
def test_holes_and_zeros_are_alike(pieces: list[tuple[int, int, bytes]], sectors: int) -> None:
    """One content, once with its zeros stored and once with holes where it has zeros."""
    size = sectors * 512
    data = bytearray(size)
    with tempfile.TemporaryDirectory() as folder:
        stored, sparse = Path(folder, "stored"), Path(folder, "sparse")
        with sparse.open("wb") as file:
            file.truncate(size)
            for at, length, value in pieces:
                piece = (value * length)[: max(0, size - at)]
                data[at : at + len(piece)] = piece
                file.seek(at)
                file.write(piece)
        stored.write_bytes(data)
        assert digest(stored) == digest(sparse) == by_the_book(bytes(data))


def test_size_counts() -> None:
    assert disk_digest(512, {}) != disk_digest(1024, {}) != disk_digest(MIB, {})
    # A disk of tebibytes that is one hole is no work.
    assert disk_digest(8 << 40, {}).startswith("sha256:")


@given(st.integers())
@settings(max_examples=15, deadline=None)
def test_behind_a_writer(seed: int) -> None:
    """Whatever is hashed while a writer goes on in order is what is there in the end."""
    chance = random.Random(seed)
    size = chance.randrange(1, 12) * MIB + chance.randrange(0, 3) * 512
    data = bytearray(size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        with path.open("wb") as file:
            file.truncate(size)
        written, found = threading.Event(), dict[int, bytes]()
        behind = threading.Thread(target=lambda: found.update(follow(path, size, written, threading.Event())))
        behind.start()
        with path.open("r+b", buffering=0) as file:
            at = 0
            while at < size:
                length = min(chance.randrange(1, 3 * MIB), size - at)
                if chance.random() < 0.7:
                    data[at : at + length] = chance.randbytes(length)
                    file.seek(at)
                    for begin in range(at, at + length, 65536):
                        file.write(data[begin : min(begin + 65536, at + length)])
                at += length
                time.sleep(chance.choice([0, 0, 0.003]))
        written.set()
        behind.join()
        assert all(value == hashlib.sha256(data[n * CHUNK : (n + 1) * CHUNK]).digest() for n, value in found.items())
        assert digest(path, found) == by_the_book(bytes(data))
