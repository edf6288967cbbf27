"""Disks from one format to another by qemu-img(1), which reads a stranger's bytes: it is locked up for it.

It runs as a user of its own in an empty room without network, capabilities or any file but the two (``native/jailer.c``), with bounds
for time, memory and what it writes, and is told the format of what it reads. It dies with us.
"""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from lamella.host.images.content import CONVERTER
from lamella.host.linux import binaries
from lamella.host.linux.processes import environment, read_all, readable, spawn
from lamella.model.errors import Corrupt, DeadlineExceeded, LamellaError, Unsupported

# The second without which nothing ends, and the slowest that anything honest is, in bytes a second.
_LEAST_SECONDS = 600
_SLOWEST = 2 << 20
_MEMORY = 4 << 30
_OVERHEAD = 64 << 20

_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_OUTPUT = 9
_PROGRESS = re.compile(rb"\((\d+\.\d\d)/100%\)")

FORMATS = {
    "qcow2": ["-O", "qcow2"],
    "vmdk": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
    "vdi": ["-O", "vdi"],
    "vhdx": ["-O", "vhdx"],
}


class Input(msgspec.Struct, kw_only=True, frozen=True):
    """A disk in the file *path*, *length* bytes from *offset*, as QEMU's *driver* with *options* reads it. ``size`` is the guest's."""

    path: Path
    driver: str
    size: int
    length: int
    offset: int = 0
    options: dict[str, str] = {}


def image_options(source: Input) -> str:
    """What ``--image-opts`` takes for the file that the room shows as ``/input``."""
    options = {"driver": source.driver, **source.options}
    prefix = "file."
    if source.driver == "raw":
        options |= {"offset": str(source.offset), "size": str(-(-source.length // 512) * 512)} if source.offset else {}
    elif source.offset:
        options |= {"file.driver": "raw", "file.offset": str(source.offset), "file.size": str(source.length)}
        prefix = "file.file."
    options |= {f"{prefix}driver": "file", f"{prefix}filename": "/input"}
    return ",".join(f"{key}={value}" for key, value in options.items())


def seconds(source: Input) -> int:
    """How long a conversion may take, on the clock and on a processor."""
    return _LEAST_SECONDS + max(source.length, source.size >> 6) // _SLOWEST


def command(source: Input, target: Path, room: Path, output: list[str]) -> list[str]:
    """The argument vector: *source* becomes *target* as *output* says (``-O …``)."""
    limit = str(seconds(source))
    largest = source.size if output == ["-O", "raw"] else source.size + source.size // 8 + _OVERHEAD
    return [
        str(binaries.own("lamella-jailer")),
        *("--room", str(room), "--user", str(CONVERTER), "--wait", limit, "--output", str(_OUTPUT)),
        *("--bind", f"{binaries.tool('qemu-img')}:/usr/bin/qemu-img"),
        *("--bind", f"{_LIBRARIES}:{_LIBRARIES}", "--bind", f"{_LOADER.resolve()}:{_LOADER}"),
        *("--bind", f"{source.path}:/input", "--file", f"{target}:/output"),
        *("--limit", f"cpu={limit}", "--limit", f"as={_MEMORY}", "--limit", f"fsize={largest}"),
        *("--limit", "core=0", "--limit", "nofile=64", "--limit", "memlock=65536"),
        # In order, not -W: whoever hashes behind it knows by what was written last that all before it is there.
        *("--", "/usr/bin/qemu-img", "convert", "-p", "-m", "8", *output),
        *("--image-opts", image_options(source), "/output"),
    ]


async def convert(
    source: Input, target: Path, output: list[str], *, room: Path, mark: str, name: str, progress: Callable[[int], None]
) -> None:
    """Write *source* to *target*, a file of the converter's; *room* is an empty directory. *progress* gets bytes of the disk.

    :raise Corrupt: when qemu-img finds it damaged, or it is bigger than it says.
    :raise DeadlineExceeded: when it takes longer than anything honest.
    :raise OSError: ``ENOSPC`` when the disk is full.
    """
    output_end, their_output = os.pipe()
    errors_end, their_errors = os.pipe()
    try:
        child = spawn(
            command(source, target, room, output),
            environment={**environment(mark), "LD_LIBRARY_PATH": str(_LIBRARIES)},
            files={2: their_errors, _OUTPUT: their_output},
        )
    except BaseException:
        os.close(output_end)
        os.close(errors_end)
        raise
    finally:
        os.close(their_output)
        os.close(their_errors)
    try:
        try:
            await _follow(output_end, source.size, progress)
        finally:
            os.close(output_end)
        said = (await read_all(errors_end)).decode(errors="replace")
        code = await child.wait()
    except BaseException:
        await child.end()
        raise
    if code:
        raise failure(code, said, name, seconds(source))


async def _follow(descriptor: int, size: int, progress: Callable[[int], None]) -> None:
    """Tell *progress* how far it is, until nothing more is said."""
    os.set_blocking(descriptor, False)
    done, tail = 0, b""
    while True:
        try:
            piece = os.read(descriptor, 4096)
        except BlockingIOError:
            await readable(descriptor)
            continue
        if not piece:
            return
        tail = (tail + piece)[-64:]
        if found := _PROGRESS.findall(tail):
            now = min(int(float(found[-1]) / 100 * size), size)
            if now > done:
                progress(now - done)
                done = now


def failure(code: int, said: str, name: str, limit: int) -> Exception:
    """What the end of a conversion with *code* means to a person."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = re.sub(r"^qemu-img: ", "", lines[-1]) if lines else ""
    if code in (128 + signal.SIGALRM, 128 + signal.SIGXCPU):
        return DeadlineExceeded(
            f"{name} was not converted within {limit} seconds", hint="no honest disk of this size takes so long"
        )
    if "No space left" in said or "Disk quota" in said:
        return OSError(28, told)
    if "File too large" in said:
        return Corrupt(f"{name} holds more than its header says", hint="copy or export it again")
    if "lamella-jailer" in told or told.startswith("cannot "):
        return _unusable(told)
    return Corrupt(
        f"{name} cannot be read: {told[:300] or f'qemu-img ended with {code}'}", hint="copy or export it again"
    )


def _unusable(told: str) -> LamellaError:
    return Unsupported(
        f"disks cannot be converted on this host: {told[:300]}", hint="the daemon needs root and namespaces"
    )
