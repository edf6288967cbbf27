"""Behind a writer: what it wrote is hashed while it is still in memory, and sent to the disk before it has to be waited for."""

import ctypes
import os
import threading
from pathlib import Path

from lamella.host.images.formats.digest import CHUNK, chunk_length, hash_chunk, next_data

_PAUSE = 0.004
_FLUSH_PAUSE = 0.02
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE, sync_file_range(2)

_libc = ctypes.CDLL(None, use_errno=True)


def follow(path: Path, size: int, written: threading.Event, stop: threading.Event) -> dict[int, bytes]:
    """The SHA-256 of the chunks of *path* that are complete before *written* is set: those with data after their end.

    The writer writes in order, as qemu-img(1) does without ``-W``.

    The filesystem tells holes from data (``digest.tells_holes``), and the file was all hole at first. Ends when *written* or *stop*
    is set.
    """
    chunks: dict[int, bytes] = {}
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = 0
        while not (written.is_set() or stop.is_set()):
            begun = next_data(descriptor, number * CHUNK)
            number = number if begun is None else begun // CHUNK
            if begun is None or next_data(descriptor, (number + 1) * CHUNK) is None:
                written.wait(_PAUSE)
                continue
            chunks[number] = hash_chunk(descriptor, number, chunk_length(size, number))
            number += 1
        return chunks
    finally:
        os.close(descriptor)


def flush(path: Path, written: threading.Event, stop: threading.Event) -> None:
    """Have the kernel begin to write out what is new in *path*, until *written* or *stop* is set. It makes nothing durable: the
    fsync(2) that follows finds little left."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while not (written.wait(_FLUSH_PAUSE) or stop.is_set()):
            # Where it is not supported nothing is lost but time.
            _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_START_WRITING))
    finally:
        os.close(descriptor)
