"""What modules were compiled to: once for this library, its configuration and this processor.

To load compiled code is to trust it, so an entry is loaded only when it is byte for byte what the compiler wrote: its digest is written
down beside it and compared when a daemon first uses the file, and again when its inode, size or times have changed. The compiler is a
worker as confined as any other; what it gets to write is one file that the daemon opened for it.
"""

import asyncio
import hashlib
import json
import os
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu.places import boot_id
from lamella.host.compute.wasm import order as orders
from lamella.host.compute.wasm.monitor import Connection, Kind, Lost
from lamella.host.compute.wasm.source import Source
from lamella.host.compute.wasm.zygote import Zygote
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import Cgroup
from lamella.model.errors import CannotRun, Corrupt, DeadlineExceeded, LamellaError

# Changed whenever the engine's configuration in native/wasm/library.c is: what was compiled before does not fit then.
CONFIGURATION = 1

COMPILE_LIMITS = Limits(memory=2 << 30, pids=64)
COMPILE_DEADLINE = 120.0


class Entry(msgspec.Struct, kw_only=True):
    """What is written down beside a compiled module. ``images`` are the digests of those that use it."""

    digest: str
    size: int
    images: list[str]


def processor() -> str:
    """What compiled code depends on: the first processor's model and flags."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return hashlib.sha256(json.dumps([os.uname().machine, found], sort_keys=True).encode()).hexdigest()


class Modules:
    """The compiled modules of one layer, in *directory*. *group* makes a control group of a name."""

    def __init__(self, directory: Path, version: str, zygote: Zygote, group: Callable[[str], Cgroup]) -> None:
        self._directory = directory
        self._version = version
        self._zygote = zygote
        self._group = group
        self._processor = processor()
        self._verified: dict[str, tuple[int, ...]] = {}
        self._compiling: dict[str, asyncio.Lock] = {}
        self._counter = 0

    def open(self) -> None:
        """Make the directory; what a compiler left half-made goes."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.glob("*.new"):
            path.unlink(missing_ok=True)

    def key(self, source: Source, *, fuel: bool) -> str:
        parts = [source.identity, source.component, fuel, CONFIGURATION, self._version, self._processor]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    async def ensure(self, source: Source, *, fuel: bool, user: int) -> Path:
        """The compiled module, made now if it is not there or not what was made.

        :raise CannotRun: when it is no module that wasmtime accepts.
        :raise DeadlineExceeded: when it takes longer than two minutes.
        """
        key = self.key(source, fuel=fuel)
        path = self._directory / f"{key}.cwasm"
        if self._known(key, path):
            return path
        async with self._compiling.setdefault(key, asyncio.Lock()):
            if not await blocking(self._verify, key, path, source.image):
                try:
                    await self._compile(key, path, source, fuel=fuel, user=user)
                except Lost:
                    await self._zygote.renew()
                    await self._compile(key, path, source, fuel=fuel, user=user)
        return path

    def forget(self, path: Path) -> None:
        """The library did not take it: whatever it is, it goes."""
        self._verified.pop(path.stem, None)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)

    def _known(self, key: str, path: Path) -> bool:
        try:
            return self._verified.get(key) == _fingerprint(path.lstat())
        except OSError:
            return False

    def _verify(self, key: str, path: Path, image: str) -> bool:
        """Whether the entry is what the compiler wrote."""
        try:
            with path.open("rb") as file:
                seen = os.fstat(file.fileno())
                entry = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Entry)
                owned = stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & 0o222
                if not owned or seen.st_size != entry.size:
                    return False
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.digest:
                    return False
        except (OSError, msgspec.MsgspecError):
            return False
        if image not in entry.images:
            entry.images.append(image)
            self._write(path.with_suffix(".json"), entry)
        self._verified[key] = _fingerprint(seen)
        return True

    def _write(self, path: Path, entry: Entry) -> None:
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(msgspec.json.encode(entry))
        new.replace(path)

    async def _compile(self, key: str, path: Path, source: Source, *, fuel: bool, user: int) -> None:
        self._counter += 1
        group = self._group(f"wasm-compiler-{self._counter}")
        new = path.with_name(f"{path.name}.{self._counter}.new")
        try:
            with _opened(source, new) as fds:
                await blocking(group.create, COMPILE_LIMITS)
                procs = [os.open(file, os.O_WRONLY | os.O_CLOEXEC) for file in group.procs_files()]
                try:
                    order = orders.Order(user=user, boot=boot_id(), component=source.component, count_fuel=fuel)
                    await self._zygote.open()
                    connection = self._zygote.ask(
                        orders.COMPILE, orders.pack(order), [*fds, *procs], groups=len(procs), directories=0
                    )
                finally:
                    for fd in procs:
                        os.close(fd)
                try:
                    async with asyncio.timeout(COMPILE_DEADLINE):
                        await _compiled(connection)
                except TimeoutError:
                    raise DeadlineExceeded(
                        f"the module was not compiled within {COMPILE_DEADLINE:g} s",
                        hint="it is made to be slow, or too large",
                    ) from None
                finally:
                    connection.close()
            await blocking(self._keep, key, new, path, source.image)
        finally:
            with suppress(LamellaError):
                await blocking(group.remove)
            new.unlink(missing_ok=True)

    def _keep(self, key: str, new: Path, path: Path, image: str) -> None:
        with new.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            os.fchmod(file.fileno(), 0o444)
        if size == 0:
            raise Corrupt("the compiler wrote nothing")
        path.unlink(missing_ok=True)
        self._write(path.with_suffix(".json"), Entry(digest=digest, size=size, images=[image]))
        new.replace(path)
        if not self._verify(key, path, image):
            raise Corrupt("a compiled module changed as it was kept", hint="is the disk in order?")

    def collect(self, keep: set[str]) -> int:
        """Remove what was made of images whose digest is not in *keep*; returns bytes freed."""
        freed = 0
        for path in self._directory.glob("*.json"):
            try:
                entry = msgspec.json.decode(path.read_bytes(), type=Entry)
            except (OSError, msgspec.MsgspecError):
                entry = Entry(digest="", size=0, images=[])
            if keep.isdisjoint(entry.images):
                compiled = path.with_suffix(".cwasm")
                with suppress(OSError):
                    freed += compiled.stat().st_blocks * 512
                self.forget(compiled)
        return freed


async def _compiled(connection: Connection) -> None:
    while (packet := await connection.receive()) is not None:
        if packet.kind is Kind.FAILED:
            raise CannotRun(packet.text, hint="wasmtime does not accept it", exit_code=126)
        if packet.kind is Kind.ENDED:
            if packet.code == 0:
                return
            raise CannotRun(f"the module could not be compiled: {packet.text}", hint="it is too large", exit_code=126)
    raise Lost("the compiler ended without a word", hint="try again")


@contextmanager
def _opened(source: Source, new: Path) -> Generator[list[int]]:
    """The module to read and a fresh file to write, as descriptors."""
    reading = source.open()
    try:
        writing = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            yield [reading, writing]
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _fingerprint(seen: os.stat_result) -> tuple[int, ...]:
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
