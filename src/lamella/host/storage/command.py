"""Tools of others that answer on stdout, run to their end: the commands of Ceph, LVM, ZFS, iSCSI, and qemu-img.

They die with us (``setpriv --pdeathsig``): a daemon that starts again begins from what lies on the disks, and a tool of the former one
that went on would change that below it.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from lamella.host.linux import binaries
from lamella.model.errors import DeadlineExceeded, Unavailable

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Said(msgspec.Struct, kw_only=True, frozen=True):
    """How a tool ended. ``code`` is 128 + N after signal N."""

    code: int
    out: bytes
    error: str


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    quick: bool = False,
) -> Said:
    """*environment* is added to a path and the locale C. The tool is killed when the caller is cancelled, and, but for one that is *quick*
    and changes nothing for long, when the thread that asked ends.

    :raise DeadlineExceeded: when it did not end in *timeout* seconds; it is killed then.
    :raise Unavailable: when it is not installed.
    """
    if shutil.which(argv[0], path=PATH) is None:
        raise Unavailable(f"{argv[0]} is not installed")
    dying = [] if quick else [str(binaries.tool("setpriv")), "--pdeathsig", "KILL", "--"]
    try:
        process = await asyncio.create_subprocess_exec(
            *dying,
            *argv,
            # Nothing to say is no pipe: of a tool that ends before it is closed, uvloop raises what nobody expects.
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": PATH, "LC_ALL": "C", "HOME": os.environ.get("HOME", "/root"), **(environment or {})},
        )
    except OSError as error:
        raise Unavailable(f"{argv[0]} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout):
            out, said = await process.communicate(stdin or None)
    except RuntimeError as error:
        raise Unavailable(f"{Path(argv[0]).name} ended before it had heard everything: {error}") from error
    except TimeoutError:
        raise DeadlineExceeded(
            f"{Path(argv[0]).name} did not end within {timeout:g} s", hint="see the load and what it talks to"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    code = process.returncode or 0
    return Said(code=code if code >= 0 else 128 - code, out=out, error=said.decode(errors="replace").strip())
