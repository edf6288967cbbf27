"""Digests of artifacts: a disk's does not depend on the format that it came in, nor on which of its zeros are stored.

A disk's digest is the SHA-256 of its *list of chunks*: the sixteen bytes ``lamella.disk.v1\\n``, its size in bytes as a big-endian
number of eight bytes, then the SHA-256 (32 bytes) of each chunk of 1 MiB of its content, in order; the last chunk may be shorter.
Zeros count as zeros whether they are stored or a hole. Every other artifact's digest is the SHA-256 of its bytes.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from lamella.host.images.unpack import Cancelled

CHUNK = 1 << 20
HEADER = b"lamella.disk.v1\n"
_ZEROS = hashlib.sha256(bytes(CHUNK)).digest()
_PIECE = 4 << 20
_local = threading.local()


def list_size(size: int) -> int:
    """Bytes of the list of chunks of a disk of *size* bytes."""
    return len(HEADER) + 8 + 32 * -(-size // CHUNK)


def chunk_length(size: int, number: int) -> int:
    """Bytes of chunk *number* of a disk of *size* bytes."""
    return min(CHUNK, size - number * CHUNK)


def zeros(length: int) -> bytes:
    """The SHA-256 of a chunk of *length* zeros."""
    return _ZEROS if length == CHUNK else hashlib.sha256(bytes(length)).digest()


def disk_digest(size: int, chunks: dict[int, bytes]) -> str:
    """The digest of a disk of *size* bytes, from the SHA-256 of the *chunks* that are not all hole."""
    done = hashlib.sha256(HEADER + size.to_bytes(8, "big"))
    at, count = 0, -(-size // CHUNK)
    for number in sorted(chunks):
        for part in _holes(size, at, number):
            done.update(part)
        done.update(chunks[number])
        at = number + 1
    for part in _holes(size, at, count):
        done.update(part)
    return f"sha256:{done.hexdigest()}"


def _holes(size: int, start: int, end: int) -> Iterator[bytes]:
    """The list's part for chunks from *start* to *end*, all zeros; in bounded pieces, for a disk of tebibytes may be one hole."""
    full = min(end, size // CHUNK) - start
    while full > 0:
        step = min(full, 65536)
        yield _ZEROS * step
        start, full = start + step, full - step
    if start < end:
        yield zeros(size % CHUNK)


def next_data(descriptor: int, offset: int) -> int | None:
    """Where data begins at or after *offset*; ``None`` when only a hole follows (lseek(2), SEEK_DATA)."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def tells_holes(descriptor: int) -> bool:
    """Whether the filesystem of an open file that is all hole says so; one that cannot calls everything data."""
    return next_data(descriptor, 0) is None


def hash_chunk(descriptor: int, number: int, length: int) -> bytes:
    """The SHA-256 of one chunk, read and hashed outside Python's lock."""
    view = _buffer()[:length]
    done = 0
    while done < length:
        count = os.preadv(descriptor, [view[done:]], number * CHUNK + done)
        if not count:
            view[done:] = bytes(length - done)
            break
        done += count
    return hashlib.sha256(view).digest()


def _buffer() -> memoryview:
    """A chunk's room, one for each thread."""
    found: memoryview | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = memoryview(bytearray(CHUNK))
    return found


def digest_disk(
    descriptor: int,
    size: int,
    stop: threading.Event,
    progress: Callable[[int], None],
    *,
    known: dict[int, bytes] | None = None,
) -> str:
    """The digest of the raw disk that *descriptor* is open on, by as many threads as there are processors.

    *known* are chunks that were hashed already; *progress* gets bytes of the disk as they are done with.

    :raise Cancelled: when *stop* is set.
    """
    chunks = known if known is not None else {}

    def one(number: int) -> None:
        if stop.is_set():
            raise Cancelled
        length = chunk_length(size, number)
        chunks[number] = hash_chunk(descriptor, number, length)
        progress(length)

    stored = _stored(descriptor, size)
    progress(size - sum(chunk_length(size, number) for number in stored if number not in chunks))
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="digest") as pool:
        works = [pool.submit(one, number) for number in stored if number not in chunks]
        try:
            for work in works:
                work.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return disk_digest(size, chunks)


def _stored(descriptor: int, size: int) -> list[int]:
    """Numbers of the chunks that hold data."""
    found: list[int] = []
    at: int | None = next_data(descriptor, 0)
    while at is not None and at < size:
        found.append(at // CHUNK)
        at = next_data(descriptor, (at // CHUNK + 1) * CHUNK)
    return found


def digest_file(descriptor: int, stop: threading.Event, progress: Callable[[int], None]) -> str:
    """The SHA-256 of the whole file."""
    done = hashlib.sha256()
    offset = 0
    while piece := os.pread(descriptor, _PIECE, offset):
        if stop.is_set():
            raise Cancelled
        done.update(piece)
        offset += len(piece)
        progress(len(piece))
    return f"sha256:{done.hexdigest()}"
