"""Where the things of one machine under QEMU lie, and what is written down of it: small files that appear whole and durable, or not at all.

<state>/<level>/<id>/machine.json    what was asked
                     process.json    the QEMU of its last run
                     exit.json       how that run ended
                     log.<n>         what it wrote (log.py)
<run>/<level>/<id>/monitor, agent    sockets on which QEMU listens
                   room/             an empty directory, the mount point of its room
"""

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from lamella.host.compute.driver import Home, Limits, Machine
from lamella.host.compute.qemu.size import Size
from lamella.host.linux.processes import start_time

T = TypeVar("T")


class ProcessRecord(msgspec.Struct, kw_only=True, frozen=True):
    """A QEMU that was started. ``started`` (clock ticks since boot) and ``boot`` tell it from another process with its pid.

    ``ready`` is set when the guest has been configured, ``started_at`` when its command was started; ``limits`` are the newest.
    ``size`` is what it booted with, ``largest`` what it can be grown to while it runs, ``board_type`` its machine type. ``began`` is the
    id of the memory that it began with; empty is that it booted. While it is ``asleep`` it has taken over that memory and not run yet;
    one that ``rests`` has, and stands still until it is told its command;
    ``suspended`` says that its own memory is kept and that it ended, or is about to.
    """

    pid: int
    started: int
    boot: str
    accelerator: str
    accelerator_reason: str
    size: Size
    limits: Limits
    ready: bool = False
    started_at: datetime | None = None
    largest: Size | None = None
    board_type: str = ""
    began: str = ""
    asleep: bool = False
    rests: bool = False
    suspended: bool = False

    def alive(self) -> bool:
        return self.boot == boot_id() and start_time(self.pid) == self.started


class ExitRecord(msgspec.Struct, kw_only=True, frozen=True):
    """How a run ended. ``reason`` is set when it did not end by its command's exit."""

    exit_code: int | None
    started_at: datetime | None
    finished_at: datetime
    reason: str = ""


class Places:
    """The directories of one machine of *level* (``microvm``, ``vm``, ``unikernel``)."""

    def __init__(self, home: Home, level: str, id: str) -> None:
        self.id = id
        self.level = level
        self.state = home.state / level / id
        self.run = home.run / level / id
        self.room = self.run / "room"

    def machine(self) -> Machine | None:
        return _load(self.state / "machine.json", Machine)

    def process(self) -> ProcessRecord | None:
        return _load(self.state / "process.json", ProcessRecord)

    def exit(self) -> ExitRecord | None:
        return _load(self.state / "exit.json", ExitRecord)

    def write(self, record: Machine | ProcessRecord | ExitRecord) -> None:
        """Replace the record of this type, durably."""
        names = {Machine: "machine.json", ProcessRecord: "process.json", ExitRecord: "exit.json"}
        write_durably(self.state / names[type(record)], msgspec.json.encode(record, enc_hook=_encode))

    def prepare(self) -> None:
        """Make the directories, and forget the last run."""
        for directory in (self.state, self.run, self.room):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("process.json", "exit.json"):
            (self.state / name).unlink(missing_ok=True)
        for name in ("monitor", "agent"):
            (self.run / name).unlink(missing_ok=True)

    def remove_run(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)

    def remove(self) -> None:
        """Remove all; the state goes last, since it is what says that there is something."""
        self.remove_run()
        shutil.rmtree(self.state, ignore_errors=True)


def inventory(home: Home, level: str) -> set[str]:
    """Ids of all machines of *level* that have something written down."""
    try:
        return {entry.name for entry in os.scandir(home.state / level) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def boot_id() -> str:
    """Which boot of the host this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_durably(path: Path, data: bytes) -> None:
    """Put *data* at *path* so that after a power cut there is the old content or the new."""
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    new.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _encode(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode(kind: type[object], value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)


def _load(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind, dec_hook=_decode)
    except (OSError, msgspec.MsgspecError):
        return None
