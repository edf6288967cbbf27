"""Where the things of one WebAssembly instance lie.

<state>/wasm/<id>/record.json    what was asked, as far as it is asked again (written by create)
                  process.json   its monitor and worker (written by the monitor)
                  exit.json      how its last run ended (written by the monitor)
                  log.<n>        what it wrote (written by the monitor; read by qemu/log.py)
<run>/wasm/<id>/socket           where the monitor listens
<state>/wasm-modules/            compiled modules (modules.py)
<run>/wasm-room/                 an empty directory, the mount point of the room

What is written is whole or not there, whoever is killed. It is not synced: an instance does not outlive the host, so there is nothing
that a power cut could take from it but its files, and those are then those of an instance that ended.
"""

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from lamella.host.compute.driver import Home, Limits
from lamella.host.compute.qemu.places import ExitRecord, boot_id
from lamella.host.linux.processes import start_time
from lamella.model.board import Directory

LEVEL = "wasm"

T = TypeVar("T")


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """What was asked of an instance."""

    limits: Limits
    user: int
    component: bool
    stdin: bool
    fuel: int | None
    deadline: float | None
    directories: list[Directory]


class ProcessRecord(msgspec.Struct, kw_only=True, frozen=True):
    """``pid`` is the monitor's; ``started`` (clock ticks since boot) and ``boot`` tell it from another with its number."""

    pid: int
    started: int
    worker: int
    boot: str
    started_at: datetime | None = None

    def alive(self) -> bool:
        return self.boot == boot_id() and start_time(self.pid) == self.started


class Places:
    def __init__(self, home: Home, id: str) -> None:
        self.id = id
        # One parse each: this is made several times for every verb.
        self.state = Path(f"{home.state}/{LEVEL}/{id}")
        self.run = Path(f"{home.run}/{LEVEL}/{id}")

    @property
    def socket(self) -> Path:
        return self.run / "socket"

    def record(self) -> Record | None:
        return _load(self.state / "record.json", Record)

    def process(self) -> ProcessRecord | None:
        return _load(self.state / "process.json", ProcessRecord)

    def exit(self) -> ExitRecord | None:
        return _load(self.state / "exit.json", ExitRecord)

    def prepare(self, record: Record) -> None:
        """Make the directories, forget the last run, write down what was asked."""
        for directory in (self.state, self.run):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.state / "process.json", self.state / "exit.json", self.socket):
            path.unlink(missing_ok=True)
        self.write(record)

    def write(self, record: Record | ExitRecord) -> None:
        name = "record.json" if isinstance(record, Record) else "exit.json"
        new = self.state / f"{name}.new"
        new.write_bytes(msgspec.json.encode(record))
        new.replace(self.state / name)

    def remove_run(self) -> None:
        _remove(self.run)

    def remove(self) -> None:
        """Remove all; the state goes last, since it is what says that there is something."""
        self.remove_run()
        _remove(self.state)


def inventory(home: Home) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(home.state / LEVEL) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def modules(home: Home) -> Path:
    return home.state / "wasm-modules"


def room(home: Home) -> Path:
    return home.run / "wasm-room"


def _remove(directory: Path) -> None:
    """A directory of files; gone already is fine."""
    try:
        for name in os.listdir(directory):  # noqa: PTH208 - a path object for each costs more than its removal
            os.unlink(f"{directory}/{name}")  # noqa: PTH108
        directory.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)


def _load(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
