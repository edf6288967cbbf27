"""What is open, written down, so that a storage process that crashed is what it was at once: ``<run>/storage/open/<id>.json``.

No key is in it: :class:`Opened` says only that there is one.
"""

import shutil
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu.places import boot_id, write_durably
from lamella.host.storage.driver import Layer, Node
from lamella.model.storage import IoLimits

# How the roles of processes begin that are started for one thing.
SHOP = "shop"


class Door(msgspec.Struct, kw_only=True, frozen=True):
    """A way in: a file, or the machine's socket, for the user *owner*."""

    owner: int | None = None
    writable: bool = True


class Opened(msgspec.Struct, kw_only=True, frozen=True):
    """An open volume. ``machine`` is the instance whose own process serves it (empty: ``doors`` does). ``entering`` is the layer that it is
    told to go over to: it may stand on that already, or not yet.

    ``job`` is the one after which it stands on ``node``: it is in its last step, or done. ``parked`` says that its files are closed, and
    that whoever writes waits until it is added again, with the node that it has then. ``held``: whoever uses it waits; ``pressed``: is
    slowed down so that a job catches up, the more the higher this is.
    """

    id: str
    boot: str
    node: Node
    encrypted: bool = False
    limits: IoLimits = msgspec.field(default_factory=IoLimits)
    group: str = ""
    machine: str = ""
    read_only: bool = False
    doors: list[Door] = []
    held: bool = False
    pressed: int = 0
    entering: Layer | None = None
    job: str = ""
    parked: bool = False


class Places:
    """``<run>/storage``: reached by nobody but root."""

    def __init__(self, home: Home) -> None:
        self.top = home.run / "storage"
        self.open = self.top / "open"
        self.files = self.top / "exports"
        self.sockets = self.top / "sockets"

    def prepare(self) -> None:
        for directory in (self.top, self.open, self.files, self.sockets):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Machines' users walk through to the socket that is theirs; none can list what is here.
        self.top.chmod(0o711)
        self.sockets.chmod(0o711)

    def forget_shops(self) -> None:
        """What processes for one thing left behind that were killed."""
        for path in self.top.glob(f"{SHOP}-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def file(self, id: str) -> Path:
        return self.files / id

    def socket(self, machine: str) -> Path:
        """Of all volumes of one machine, in a directory of its own."""
        return self.sockets / machine / "disks"

    def thread(self, id: str) -> Path:
        """What is known of the thread that serves its file."""
        return self.open / f"{id}.thread"

    # --- records

    def read_all(self) -> dict[str, Opened]:
        """Those of this boot; what another boot left is forgotten."""
        found: dict[str, Opened] = {}
        for entry in sorted(self.open.glob("*.json")):
            try:
                opened = msgspec.json.decode(entry.read_bytes(), type=Opened, dec_hook=_decode)
            except (OSError, msgspec.MsgspecError):
                opened = None
            if opened is None or opened.boot != boot_id():
                entry.unlink(missing_ok=True)
            else:
                found[opened.id] = opened
        return found

    def write(self, opened: Opened) -> None:
        write_durably(self.open / f"{opened.id}.json", msgspec.json.encode(opened, enc_hook=str))

    def forget(self, id: str) -> None:
        (self.open / f"{id}.json").unlink(missing_ok=True)
        self.thread(id).unlink(missing_ok=True)
        self.file(id).unlink(missing_ok=True)

    def forget_socket(self, machine: str) -> None:
        """It has no volumes left."""
        shutil.rmtree(self.socket(machine).parent, ignore_errors=True)


def _decode(kind: type[object], value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
