"""Starting one QEMU: everything that it needs is opened for it, then the jailer puts it into its room and lets go."""

import fcntl
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lamella.host.compute.qemu import memory_file
from lamella.host.compute.qemu.accelerator import DEVICE, Accelerator
from lamella.host.compute.qemu.places import Places
from lamella.host.linux import binaries
from lamella.host.linux.processes import environment, read_all, spawn
from lamella.model.errors import Unavailable

# Where things lie inside the room, and the descriptor that the guest's console goes to.
QEMU = "/usr/bin/qemu-system-x86_64"
FIRMWARE = "/usr/share/qemu"
NULL = "/dev/null"
CONSOLE = 1
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# The most that QEMU and the guest's console can write: sealed memory, charged to the group that they are in.
CONSOLE_SIZE = 256 << 10
ERRORS_SIZE = 64 << 10

# Where the jailer finds what becomes QEMU's standard output; its own tells the pid. Where the keeper finds the file for the end.
OUTPUT = 9
STATUS = 127

# Nothing may be raised, and a QEMU needs little.
RESOURCE_LIMITS = ("core=0", "nofile=1024", "memlock=65536")

# The room shows the libraries of the distribution, which everybody may read, and no configuration, user or other program.
_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_FIRMWARE = (Path("/usr/share/qemu"), Path("/usr/share/seabios"), Path("/usr/lib/ipxe/qemu"))


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What one QEMU is given: its argument vector, what its room shows beside libraries and firmware (of the host: inside), and which
    devices of the host it may write to beside ``/dev/kvm`` and ``/dev/null``; their groups are its own too. With ``memory_file`` its
    memory is a file that it finds among its descriptors."""

    argv: list[str]
    qemu: Path
    accelerator: Accelerator
    shown: dict[Path, Path] = {}
    devices: list[Path] = []
    memory_file: bool = False

    def jailer(self, places: Places, user: int, procs_files: list[Path], descriptors: list[int]) -> list[str]:
        """The argument vector of the jailer, QEMU's after it."""
        options: list[str] = []
        for file in procs_files:
            options += ["--cgroup", str(file)]
        options += ["--room", str(places.room), "--user", str(user)]
        shown = {self.qemu: Path(QEMU), _LIBRARIES: _LIBRARIES, _LOADER.resolve(): _LOADER}
        shown |= {path: path for path in _FIRMWARE if path.is_dir()}
        if self.memory_file:
            shown[binaries.own("lamella-sealed.so")] = memory_file.PRELOAD
            options += ["--descriptors", str(memory_file.DESCRIPTORS)]
        for source, target in (shown | self.shown).items():
            options += ["--bind", f"{source}:{target}"]
        # QEMU tries its file locks on it, and takes none on any disk where it is missing.
        options += ["--device", f"{NULL}:{NULL}"]
        if self.accelerator.name == "kvm":
            options += ["--device", f"{DEVICE}:{DEVICE}"]
            if self.accelerator.group is not None:
                options += ["--group", str(self.accelerator.group)]
        for device in self.devices:
            options += ["--device", f"{device}:{device}"]
            if group := device.stat().st_gid:
                options += ["--group", str(group)]
        for limit in RESOURCE_LIMITS:
            options += ["--limit", limit]
        for number in descriptors:
            options += ["--keep", str(number)]
        options += ["--output", str(OUTPUT)]
        return [str(binaries.own("lamella-jailer")), *options, "--", *self.argv]

    def environment(self) -> dict[str, str]:
        """What QEMU's loader is told; the programs before it are static."""
        preload = {"LD_PRELOAD": str(memory_file.PRELOAD)} if self.memory_file else {}
        return {"LD_LIBRARY_PATH": str(_LIBRARIES), **preload}


async def launch(
    plan: Plan,
    places: Places,
    *,
    user: int,
    procs_files: list[Path],
    files: Mapping[int, int],
    console: int,
    errors: int,
    mark: str,
    status: int | None = None,
) -> int:
    """Start QEMU in its room, with *files* (its descriptors: ours); returns its pid. It is nobody's child and outlives us.

    With *status*, an open file, a keeper (native/keeper.c) outlives us too and writes there how QEMU ended.

    :raise Unavailable: when the jailer could not do it; its words are in the error.
    """
    argv = plan.jailer(places, user, procs_files, sorted(files))
    kept: dict[int, int] = {}
    if status is not None:
        argv = [*keeper(user, procs_files), *argv]
        kept = {STATUS: status}
    read_end, write_end = os.pipe()
    try:
        child = spawn(
            argv,
            environment={**environment(mark), **plan.environment()},
            files={1: write_end, 2: errors, OUTPUT: console, **kept, **files},
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    try:
        text = await read_all(read_end)
        code = await child.wait()
    finally:
        await child.end()
    if code or not text.strip().isdigit():
        raise Unavailable(f"QEMU could not be started: {tail(errors) or f'the jailer ended with {code}'}")
    return int(text)


def keeper(user: int, procs_files: list[Path]) -> list[str]:
    """What goes before the jailer's argument vector so that somebody waits for QEMU."""
    groups = [word for file in procs_files for word in ("--cgroup", str(file))]
    return [str(binaries.own("lamella-keeper")), *groups, "--status", str(STATUS), "--user", str(user), "--"]


def listening(path: Path) -> socket.socket:
    """A Unix socket that listens at *path*, however long that is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(f"/proc/self/fd/{directory}/{path.name}")
            server.listen(4)
        except BaseException:
            server.close()
            raise
        return server
    finally:
        os.close(directory)


def sealed(name: str, size: int) -> int:
    """Anonymous memory of *size* bytes that cannot grow: whoever writes more gets an error."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def tail(fd: int, size: int = 600) -> str:
    """The last of what was written into sealed memory, as text."""
    data = os.pread(fd, CONSOLE_SIZE, 0).rstrip(b"\0")[-size:]
    return data.decode(errors="replace").replace("\r", "").strip()
