"""LUKS headers and keys, written by a process for that alone: stretching a key would keep the main thread of the others busy.

The keys are 32 random bytes, so the stretching is kept short. A new header comes from cryptsetup, which can be told a number of iterations;
QEMU measures its processor for seconds first (rekeying, and where cryptsetup cannot do it), and is asked for ``iter-time`` 10 ms then.
``hash-alg`` is sha512, because with the default QEMU 7.2 fails about every other time ("Unable to get accurate CPU usage").
"""

import asyncio
import base64
import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.storage import command
from lamella.host.storage.blocks import OVERHEAD, Stack
from lamella.host.storage.process import jobs, nodes
from lamella.host.storage.process.core import Core
from lamella.host.storage.process.disks import add_node, translated
from lamella.host.storage.process.qsd import Qsd
from lamella.host.storage.process.records import SHOP
from lamella.model.errors import Conflict, Invalid, Unavailable

_ITER_TIME = 10
# Seconds for which the locks of a process that was killed may outlive it.
_LOCKS = 5.0
# For random keys few iterations are enough; QEMU measures for seconds before it takes as few.
_FORMAT = (
    *(
        "cryptsetup",
        "luksFormat",
        "--batch-mode",
        "--type",
        "luks1",
        "--cipher",
        "aes-xts-plain64",
        "--key-size",
        "512",
    ),
    *("--hash", "sha512", "--pbkdf-force-iterations", "1000", "--offset", str(OVERHEAD // 512), "--key-file", "-"),
)
log = logging.getLogger("lamella.host.storage")
_numbers = itertools.count(1)


async def make(core: Core, stack: Stack) -> None:
    """:raise Invalid: without a key, or when the node has no room for the header."""
    if not stack.key:
        raise Invalid(f"volume {stack.id} has no key")
    async with _workshop(core, stack) as (monitor, node):
        size = await _size(monitor, node)
        if size <= OVERHEAD:
            raise Invalid(f"volume {stack.id} has no room for a LUKS header", hint=f"make it {OVERHEAD} bytes larger")
        with tempfile.TemporaryDirectory(prefix=f"{SHOP}-", dir=core.places.top) as place:
            if header := await _header(Path(place) / "header", stack.key):
                await _put(monitor, header, node)
                return
        await _secret(monitor, "new", stack.key)
        options = {
            "driver": "luks",
            "file": node,
            "key-secret": "new",
            "hash-alg": "sha512",
            "iter-time": _ITER_TIME,
            "size": size - OVERHEAD,
        }
        await jobs.create(monitor, "blockdev-create", {"job-id": "make", "options": options})


async def _header(path: Path, key: bytes) -> Path | None:
    """The same header as QEMU's, by cryptsetup, which can be told a number of iterations; ``None`` where it cannot do it."""
    with path.open("xb") as file:
        file.truncate(OVERHEAD + 4096)
    try:
        said = await command.run([*_FORMAT, str(path)], timeout=30, stdin=base64.b64encode(key))
    except Unavailable:
        return None
    if said.code:
        log.warning("cryptsetup makes no LUKS header; QEMU does, in seconds: %s", said.error)
    return path if said.code == 0 else None


async def _put(monitor: Monitor, header: Path, node: str) -> None:
    for name, file in (("hdr", {"driver": "file", "filename": str(header), "read-only": True}), ("begin", node)):
        view = {"driver": "raw", "node-name": name, "size": OVERHEAD, "file": file, "read-only": name == "hdr"}
        await monitor.execute("blockdev-add", view)
    job = {"job-id": "make", "device": "hdr", "target": "begin", "sync": "full", "auto-dismiss": False}
    await jobs.create(monitor, "blockdev-backup", job)


async def rekey(core: Core, stack: Stack, key: bytes) -> None:
    """:raise Unavailable: when neither the stack's key nor *key* opens it."""
    async with _workshop(core, stack) as (monitor, node):
        await _secret(monitor, "old", stack.key)
        await _secret(monitor, "new", key)
        try:
            await _unlock(monitor, node, "new")
        except Unavailable:
            await _unlock(monitor, node, "old")
            await _amend(monitor, {"state": "active", "new-secret": "new", "iter-time": _ITER_TIME})
        await _erase(monitor, stack, key)


async def _erase(monitor: Monitor, stack: Stack, key: bytes) -> None:
    if stack.key == key:
        return
    try:
        await _amend(monitor, {"state": "inactive", "old-secret": "old"})
    except Unavailable as error:
        if "doesn't match any existing keyslot" not in str(error) and "No keyslots match" not in str(error):
            raise


async def _unlock(monitor: Monitor, node: str, secret: str) -> None:
    try:
        await monitor.execute(
            "blockdev-add", {"driver": "luks", "node-name": "lks", "file": node, "key-secret": secret}
        )
    except Refused as error:
        raise Unavailable(f"the key does not open the volume: {error.reason}") from error


async def _amend(monitor: Monitor, change: dict[str, object]) -> None:
    arguments = {"job-id": "amend", "node-name": "lks", "options": {"driver": "luks", **change}, "force": False}
    await jobs.create(monitor, "x-blockdev-amend", arguments)


async def _secret(monitor: Monitor, id: str, key: bytes) -> None:
    await monitor.execute("object-add", nodes.secret(id, key))


async def _size(monitor: Monitor, name: str) -> int:
    found = await monitor.execute("query-named-block-nodes", {"flat": True})
    for node in json.loads(json.dumps(found)):
        if node["node-name"] == name:
            return int(node["image"]["virtual-size"])
    raise Unavailable(f"{name} is not open")


@asynccontextmanager
async def _workshop(core: Core, stack: Stack) -> AsyncGenerator[tuple[Monitor, str], None]:
    """A process for one thing, with the node of *stack* open in it."""
    shop = Qsd(core.home, core.places.top, f"{SHOP}-{os.getpid()}-{next(_numbers)}", ["dac_override"], lambda: None)
    await shop.start()
    try:
        await _open(shop.monitor, stack)
        yield shop.monitor, nodes.layer_name(stack.id, nodes.key_of(stack.node))
    finally:
        await shop.end()


async def _open(monitor: Monitor, stack: Stack) -> None:
    """The locks of a process that was killed may outlive it for a moment."""
    end = time.monotonic() + _LOCKS
    while True:
        try:
            await add_node(monitor, stack.id, stack.node, read_only=False)
            return
        except Refused as error:
            failure = translated(error, stack.id)
            if not isinstance(failure, Conflict) or time.monotonic() > end:
                raise failure from error
        await asyncio.sleep(0.05)
