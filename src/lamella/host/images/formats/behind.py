"""Hashing a disk while it is written: chunk by chunk behind a writer that writes in order, while the data are still in memory."""

import os
import threading
from pathlib import Path

from lamella.host.images.formats.digest import CHUNK, chunk_length, hash_chunk, next_data

_PAUSE = 0.004


def follow(path: Path, size: int, written: threading.Event, stop: threading.Event) -> dict[int, bytes]:
    """The SHA-256 of the chunks of *path* that are complete before *written* is set: those with data after their end.

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
