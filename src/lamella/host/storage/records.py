"""What this host writes down of its volumes, beside what their drivers do: one small file each, replaced by rename and synced.

    state/storage/volumes/<id>.json     how far it is made, and its wrapped key
    state/storage/open/<id>.json        for whom it is open
    state/storage/snapshots/<id>.json   a snapshot that is being taken, or what became of it

Nothing in them is secret: keys are wrapped.
"""

import logging
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.linux.files import write_all
from lamella.model.errors import Corrupt, LamellaError, Unavailable
from lamella.model.ids import is_id
from lamella.model.storage import SnapshotStatus, Volume

log = logging.getLogger("lamella.host.storage")

T = TypeVar("T", bound=msgspec.Struct)


class MadeVolume(msgspec.Struct, kw_only=True):
    """``key`` is its wrapped key, ``next_key`` one that is being put into its place. ``encrypted``, ``formatted`` and ``filled`` say what
    is done of its making. ``strange``: a machine wrote to it, so that its filesystem is looked at in full before this host mounts it.
    ``copies`` are the hidden volumes that keep its snapshots where the pool has none, by snapshot."""

    key: str = ""
    next_key: str = ""
    encrypted: bool = False
    formatted: bool = False
    filled: bool = False
    strange: bool = False
    copies: dict[str, str] = {}


class OpenVolume(msgspec.Struct, kw_only=True):
    """A volume that is attached: ``users`` are instances' ids and whether each only reads. ``way`` is ``mount`` (of its filesystem on this
    host), ``file`` or ``served`` (for a machine) or ``tree`` (a filesystem volume's own directory), and ``why`` (ways.py). ``boot`` is the
    kernel's boot id. What is served is so to the instance ``machine``, whose user is ``socket_owner``."""

    volume: Volume
    way: str
    users: dict[str, bool]
    boot: str
    socket_owner: int | None = None
    machine: str = ""
    why: str = ""

    @property
    def read_only(self) -> bool:
        return all(self.users.values())


class BegunSnapshot(msgspec.Struct, kw_only=True):
    """``done`` is what became of it; until then it counts as not taken. With ``memory`` the instance's was to be kept as well."""

    volumes: list[Volume]
    instance: str = ""
    memory: bool = False
    done: SnapshotStatus | None = None


class Folder:
    """One kind of record."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, id: str, kind: type[T]) -> T | None:
        """``None`` when there is none. One that cannot be read is not none: what it says (open, encrypted, a replica) may hold.

        :raise Corrupt: when it is not what was written. :raise Unavailable: when it cannot be read.
        """
        path = self._path / f"{id}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"the record {path} cannot be read: {error.strerror}", hint="see to its disk") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Corrupt(
                f"the record {path} is broken: {error}", hint="restore it from a backup of the host, or remove it"
            ) from error

    def write(self, id: str, record: msgspec.Struct) -> None:
        """It is on the disk when this returns."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path / f".{id}.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, msgspec.json.encode(record))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.rename(self._path / f"{id}.json")
        self._sync()

    def forget(self, id: str) -> None:
        """Gone already is fine."""
        (self._path / f"{id}.json").unlink(missing_ok=True)
        if self._path.exists():
            self._sync()

    def ids(self) -> list[str]:
        """Of all that there are, read or not."""
        return [path.stem for path in self._path.glob("*.json") if is_id(path.stem)] if self._path.exists() else []

    def all(self, kind: type[T]) -> dict[str, T]:
        """Those that can be read, by id; the log names the others. Who must not overlook one reads each of :meth:`ids`."""
        found: dict[str, T] = {}
        for id in self.ids():
            try:
                record = self.read(id, kind)
            except LamellaError as error:
                log.error("%s", error)
                continue
            if record is not None:
                found[id] = record
        return found

    def _sync(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Records:
    """All of one home. Calls block for a write: use a thread where many are made."""

    def __init__(self, home: Home) -> None:
        place = home.state / "storage"
        self.made = Folder(place / "volumes")
        self.open = Folder(place / "open")
        self.snapshots = Folder(place / "snapshots")
