"""The Unix socket on which QEMU offers the guest's port."""

import asyncio
import os
from pathlib import Path

from lamella.model.errors import DeadlineExceeded

_LONGEST_NAME = 107
_RETRY = 0.005


async def open_socket(path: Path, *, timeout: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, waiting up to *timeout* seconds for somebody to listen.

    :raise DeadlineExceeded: when nobody does.
    """
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await connect_socket(path)
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(_RETRY)
    except TimeoutError:
        raise DeadlineExceeded(
            f"nobody listened at {path} in {timeout:g} s", hint="is the machine's QEMU running?"
        ) from None


async def connect_socket(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect now, whatever the path's length.

    :raise OSError: when nobody listens.
    """
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        return await asyncio.open_unix_connection(path)
    # sockaddr_un holds 108 bytes (unix(7)); through a descriptor of the directory any path fits.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
