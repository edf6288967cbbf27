"""The TPM of a machine: swtpm, in a room of its own, as the user of the machine's QEMU and in its group, on a socket that only the two
have.

What it remembers lies with the instance (``<state>/vm/<id>/tpm``) and is all that the room shows of the host for writing. It ends
with QEMU: the socket's other end is nowhere else. QEMU outlives it; the guest's TPM answers nothing then.
"""

import os
import socket
from pathlib import Path

from lamella.host.compute.qemu.launch import RESOURCE_LIMITS, sealed, tail
from lamella.host.compute.qemu.places import Places
from lamella.host.linux import binaries
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.processes import environment, read_all, spawn
from lamella.model.errors import Unavailable

SWTPM = "/usr/bin/swtpm"
STATE = "/state"
MEMORY = 32 << 20
PROCESSES = 4

_CONTROL = 3
_OUTPUT = 9
_WORDS = 16 << 10
_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_SEARCH = f"{_LIBRARIES}:{_LIBRARIES}/swtpm"


def arguments() -> list[str]:
    """swtpm's argument vector: TPM 2.0, its state in the room, control by an inherited descriptor, its own system call filter."""
    return [
        *(SWTPM, "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={STATE},mode=0600"),
        *("--ctrl", f"type=unixio,clientfd={_CONTROL}"),
        *("--seccomp", "action=kill"),
    ]


def find() -> Path:
    """:raise Unavailable: when swtpm is not installed."""
    return binaries.tool("swtpm")


async def start(places: Places, *, user: int, procs_files: list[Path], mark: str) -> socket.socket:
    """Start the TPM of a machine; returns QEMU's end of its control channel, which the caller closes when QEMU has it.

    :raise Unavailable: when it cannot be started; its words are in the error.
    """
    swtpm = find()
    state, room = places.state / "tpm", places.run / "tpm-room"
    state.mkdir(mode=0o700, exist_ok=True)
    for path in (state, *state.iterdir()):
        os.chown(path, user, user)
    room.mkdir(mode=0o700, exist_ok=True)
    options: list[str] = []
    for file in procs_files:
        options += ["--cgroup", str(file)]
    options += ["--room", str(room), "--user", str(user), "--write", f"{state}:{STATE}"]
    for source, target in ((swtpm.resolve(), SWTPM), (_LIBRARIES, _LIBRARIES), (_LOADER.resolve(), _LOADER)):
        options += ["--bind", f"{source}:{target}"]
    for limit in RESOURCE_LIMITS:
        options += ["--limit", limit]
    options += ["--keep", str(_CONTROL), "--output", str(_OUTPUT)]
    ours, theirs = socket.socketpair()
    words = sealed("tpm", _WORDS)
    try:
        await _launch([str(binaries.own("lamella-jailer")), *options, "--", *arguments()], theirs.fileno(), words, mark)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(words)
    return ours


async def _launch(argv: list[str], control: int, words: int, mark: str) -> None:
    read_end, write_end = os.pipe()
    try:
        child = spawn(
            argv,
            environment={**environment(mark), "LD_LIBRARY_PATH": _SEARCH},
            files={1: write_end, 2: words, _CONTROL: control, _OUTPUT: words},
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    try:
        await read_all(read_end)
        code = await child.wait()
    finally:
        await child.end()
    if code:
        raise Unavailable(f"the TPM could not be started: {tail(words) or f'the jailer ended with {code}'}")


def process(group: Cgroup) -> int | None:
    """The pid of the TPM in *group*, read from the kernel."""
    for pid in group.pids():
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name == "swtpm":
            return pid
    return None
