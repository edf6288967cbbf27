"""What every isolation level can do: the Protocol of compute drivers, and the values that cross it.

A driver knows no store and no API. It is given a :class:`Machine`, everything resolved, and makes it so. Each verb is
idempotent, safe to run again after a crash at any line, and says by its errors what a person should read.
Drivers are found by the entry-point group ``lamella.compute``; the name is the isolation level.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import Layer, VolumeHandle
from lamella.model.board import Board, DesktopTicket, Directory, Input, Seed, Usb
from lamella.model.contract import Mechanism
from lamella.model.errors import Internal
from lamella.model.files import FileInfo
from lamella.model.host import Capability, Copies
from lamella.model.image import ArtifactKind, ImageConfig
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage


class Home(msgspec.Struct, frozen=True):
    """Where one layer keeps everything, and the mark that all its things bear.

    ``state`` outlives a reboot, ``run`` does not need to. ``mark`` (``lamella-1a2b3c4d``, from the path of LAMELLA_HOME)
    begins the name of every cgroup, link, nft table and namespace; every process has ``LAMELLA_MARK=<mark>`` in its
    environment.
    """

    path: Path
    mark: str

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def run(self) -> Path:
        return self.path / "run"


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    """``cpu`` milli-cores, ``memory`` bytes; ``None`` is no limit."""

    cpu: int | None = None
    memory: int | None = None
    pids: int | None = None


class StoredArtifact(msgspec.Struct, kw_only=True, frozen=True):
    """An artifact of an image as a file of this host, which is never written: a disk is raw. ``size`` is bytes."""

    kind: ArtifactKind
    digest: str
    path: Path
    size: int


class Rootfs(msgspec.Struct, kw_only=True, frozen=True):
    """The image on this host. ``layers`` are unpacked directories, top first, owned by 0, never written.

    ``digest`` is the image's and names whatever is built from it once (a block image, say).
    """

    digest: str
    layers: list[Path]
    config: ImageConfig
    artifacts: list[StoredArtifact] = []
    os: str = "linux"


class DataDisk(msgspec.Struct, kw_only=True, frozen=True):
    """A disk beside the first, by the device's name."""

    name: str
    volume: VolumeHandle


class MountedVolume(msgspec.Struct, kw_only=True, frozen=True):
    """A volume with a life of its own, open in the storage process for this instance.

    ``path`` is what a container or a module is given, a directory where it is mounted on this host (owned by 0); for a machine it is a
    raw file or device, and ``socket`` an NBD socket on which the storage process serves the same as the export ``id``, where there is one:
    then that is used instead; ``served`` says in words which it is. ``device`` names the device, and is the disk's serial number. A machine
    whose guest can mounts ``filesystem`` at ``target``; when either is empty, it is a bare disk.
    """

    name: str
    id: str
    device: str
    target: str
    filesystem: str
    path: Path
    size: int
    read_only: bool = False
    socket: Path | None = None
    served: str = ""


class DriveImage(msgspec.Struct, kw_only=True, frozen=True):
    """A CD or DVD in a drive, by the device's name."""

    name: str
    path: Path
    size: int


class NamedNic(msgspec.Struct, kw_only=True, frozen=True):
    """A NIC beside the first, by the device's name."""

    name: str
    attachment: Attachment


class Machine(msgspec.Struct, kw_only=True, frozen=True):
    """One instance with everything decided.

    ``command`` is the whole argument vector (entrypoint and command joined), ``environment`` the image's with the person's
    over it; ``id_base`` is the first of 65536 host ids that belong to this instance alone; ``disk`` is its writable layer (a wasm
    module has none; :attr:`volume` is for levels that cannot do without).

    ``board_type`` is the machine type of its first start (empty then). ``disks``, ``cdroms``, ``nics`` and ``usb`` are the devices
    that may come and go while it runs. ``huge_pages`` is the size in bytes of the pages that its memory is made of. What it has beyond
    ``memory_guarantee`` bytes may be taken from it while it does not need it; with ``None`` nothing is.

    With ``memory`` it goes on from what was kept under that id (:class:`KeepsMemory`), if ``fresh`` as another machine. ``resting`` has it
    made and left waiting for :meth:`KeepsMemory.take`; with ``cold`` it boots, whatever there is to begin from.
    """

    id: str
    name: str
    project: str
    rootfs: Rootfs
    command: list[str]
    environment: dict[str, str]
    working_directory: str
    user: str
    hostname: str
    terminal: bool
    stdin: bool
    limits: Limits
    id_base: int
    disk: VolumeHandle | None
    nic: Attachment | None
    nameservers: list[str]
    stop_signal: str
    board: Board = msgspec.field(default_factory=Board)
    board_type: str = ""
    disks: list[DataDisk] = []
    cdroms: list[DriveImage] = []
    nics: list[NamedNic] = []
    usb: list[Usb] = []
    seed: Seed = msgspec.field(default_factory=Seed)
    directories: list[Directory] = []
    volumes: list[MountedVolume] = []
    fuel: int | None = None
    deadline: float | None = None
    huge_pages: int | None = None
    memory_guarantee: int | None = None
    memory: str = ""
    fresh: bool = False
    resting: bool = False
    cold: bool = False

    @property
    def volume(self) -> VolumeHandle:
        """The writable layer.

        :raise Internal: when there is none.
        """
        if self.disk is None:
            raise Internal(f"instance {self.id} has no volume", hint="this is a defect: its level needs one")
        return self.disk

    @property
    def devices(self) -> list[str]:
        """Names of the devices that may come and go, sorted: what ``Observed.devices`` is held against."""
        named = [item.name for group in (self.disks, self.cdroms, self.nics, self.usb) for item in group]
        return sorted([*named, *(volume.device for volume in self.volumes)])


class Observed(msgspec.Struct, kw_only=True):
    """What there is of an instance now, read from reality alone.

    ``phase`` is one of ``STOPPED`` (nothing runs; ``exit_code`` and the times tell of the last run, if it is known), ``STARTING``
    (made, not yet started), ``RUNNING``, ``PAUSED``, ``SUSPENDED`` (its memory is in a file). ``launched`` is the size that it cannot grow
    beyond while it runs.
    ``devices`` are the names of what is plugged in beside the first disk and NIC, sorted; ``None`` where nothing can be.
    ``board_type`` is the machine type that runs.
    """

    phase: Phase
    pid: int | None = None
    exit_code: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    launched: Limits | None = None
    accelerator: str = ""
    accelerator_reason: str = ""
    devices: list[str] | None = None
    board_type: str = ""


class ComputeDriver(Protocol):
    """One isolation level on one host. ``name`` is the driver's (``oci``), ``changed`` is called with an id when something ended.

    The constructor is called as ``Driver(home, changed)``, acts on nothing and starts nothing.
    """

    name: str

    async def open(self) -> list[Capability]:
        """Make ready: probe this host, load what the verbs need. The first capability is the level's own (``compute.container``)
        and says whether and why not it works here."""
        ...

    async def close(self) -> None:
        """Let go of sockets and tasks; instances live on."""
        ...

    async def inventory(self) -> set[str]:
        """Ids of all instances of this level that bear our mark, dead or alive."""
        ...

    async def observe(self, id: str) -> Observed | None:
        """Adopt and look; ``None`` when there is nothing of that id. Never raises because something is broken: broken is stopped."""
        ...

    async def create(self, machine: Machine) -> None:
        """Make everything up to the moment before the command runs: ``observe`` then says STARTING. What a former run left is removed.

        :raise Unsupported: when this host or level cannot do what is asked.
        """
        ...

    async def start(self, id: str) -> None:
        """Run the command of a created instance."""
        ...

    async def stop(self, id: str, *, signal: str, timeout: float) -> None:
        """Ask with *signal*, wait up to *timeout* seconds, then force. Returns when nothing runs."""
        ...

    async def kill(self, id: str, signal: int) -> None:
        """Send *signal* (a number) to the instance's own process."""
        ...

    async def pause(self, id: str) -> None: ...

    async def resume(self, id: str) -> None: ...

    async def update(self, id: str, limits: Limits) -> None:
        """Change limits while it runs.

        :raise Unsupported: when only a restart can (the sentence says so).
        """
        ...

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream: ...

    async def attach(self, id: str) -> ProcessStream:
        """The instance's own process, from created on: nothing it writes after this call is missed."""
        ...

    def logs(
        self, id: str, *, follow: bool = False, tail: int | None = None, since: datetime | None = None
    ) -> AsyncIterator[LogEntry]:
        """What it wrote, oldest first, bounded on disk; with *follow* until it ends."""
        ...

    async def stat(self, id: str, path: str) -> FileInfo:
        """:raise NotFound: when nothing is there. All five file verbs resolve links inside the instance's root and never outside."""
        ...

    async def list_directory(self, id: str, path: str) -> list[FileInfo]: ...

    def read_file(self, id: str, path: str) -> AsyncIterator[bytes]: ...

    async def write_file(
        self, id: str, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        """Write beside *path* and rename over it, so that nobody inside sees half a file."""
        ...

    async def make_directory(self, id: str, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make it with its parents; an existing directory is fine."""
        ...

    async def usage(self, id: str) -> Usage: ...

    async def mechanisms(self, id: str) -> list[Mechanism]:
        """What isolates and limits the running instance, read from it: /proc, cgroup files, QMP. Empty when it does not run."""
        ...

    async def remove(self, id: str) -> None:
        """Kill what runs and remove all that this driver made for *id*: processes, mounts, groups, files. The disk is not its own."""
        ...


@runtime_checkable
class JoinsNamespace(Protocol):
    """A driver whose instances have a network namespace: the port is put into it between ``create`` and ``start``."""

    async def netns(self, id: str) -> Path: ...


@runtime_checkable
class TakesTap(Protocol):
    """A driver whose instances have a virtual NIC: it asks for a TAP's descriptor (its own from then on) by port id."""

    def use_taps(self, open_tap: Callable[[str], Awaitable[int]]) -> None: ...


@runtime_checkable
class TakesDevices(Protocol):
    """A driver whose running instances can be given devices and rid of them."""

    async def rewire(self, machine: Machine) -> None:
        """Make what is plugged in be the ``disks``, ``cdroms``, ``nics`` and ``usb`` of *machine*; what is there already stays as it is.

        Returns when the guest has let go of what was taken out.

        :raise Conflict: when it does not within half a minute; the device stays then.
        :raise Unsupported: when there is no place left, or this level or host has none.
        """
        ...


@runtime_checkable
class HasScreen(Protocol):
    """A driver whose instances have a screen, a keyboard and a pointer."""

    async def screenshot(self, id: str) -> bytes:
        """The screen as PNG."""
        ...

    async def input(self, id: str, input: Input) -> None:
        """:raise Invalid: when a character or key is on no keyboard; nothing is typed then."""
        ...

    async def desktop(self, id: str, kind: str) -> DesktopTicket:
        """Open the screen to one viewer, once, for a minute.

        :raise Unsupported: when this instance has no ``vnc`` or ``spice``.
        """
        ...

    async def screen(self, id: str, kind: str) -> ProcessStream:
        """A viewer's connection, byte for byte: ``Stdin`` to the screen, ``Stdout`` from it."""
        ...


@runtime_checkable
class HasProcessors(Protocol):
    """A driver whose instances have virtual processors, each a thread of the host's."""

    async def processors(self, id: str) -> list[int]:
        """The threads, in the order of the processors; one thread may be several of them. Empty when it does not run."""
        ...


@runtime_checkable
class HasMachine(Protocol):
    """A driver whose instances are whole machines: they have a reset button, and memory that can be written out."""

    async def reset(self, id: str) -> None: ...

    def dump(self, id: str, *, crash: bool) -> AsyncIterator[bytes]:
        """The memory as an ELF core, now or as it was when the guest crashed."""
        ...


@runtime_checkable
class Freezes(Protocol):
    """A driver that can have a running instance's filesystems hold still, so that a snapshot is of a finished state."""

    async def freeze(self, id: str, deadline: float) -> int:
        """Write everything out and let no write begin; returns how many filesystems stand still. After *deadline* seconds the guest thaws
        by itself, whatever happens to us.

        :raise Unsupported: when nothing inside could do it (no agent). :raise Unavailable: when it did not in time; nothing is frozen then.
        """
        ...

    async def thaw(self, id: str) -> bool:
        """Let writes go on. Whether everything stood still until now: ``False`` says that the guest had thawed before."""
        ...


@runtime_checkable
class OpensDisks(Protocol):
    """A driver whose instances open their own disks (``Machine.disk``, ``Machine.disks``) themselves, not through the storage process."""

    async def switch(self, id: str, layers: dict[str, Layer]) -> None:
        """From now on the running instance writes each volume (by id) into its new, empty qcow2 layer: all at one instant, or none.

        :raise Unsupported: when what runs has no such disk. :raise Unavailable: when QEMU does not answer.
        """
        ...


@runtime_checkable
class MergesPages(Protocol):
    """A driver whose instances' equal pages of memory the kernel can map from one (KSM). None takes part before it is told to."""

    async def merged(self, id: str) -> bool | None:
        """Whether it takes part; ``None`` when it does not run."""
        ...

    async def merge(self, id: str, on: bool) -> None:
        """Have it take part from now on, or no more: then every page is its own again when this returns.

        :raise Unavailable: when QEMU does not answer.
        """
        ...


@runtime_checkable
class DerivesImages(Protocol):
    """A driver that makes something of each image once (a block image) and keeps it."""

    async def collect_images(self, keep: set[str]) -> int:
        """Remove what was made of images whose digest is not in *keep*. Returns bytes freed."""
        ...


Changed = Callable[[str], None]
DriverFactory = Callable[[Home, Changed], ComputeDriver]


# What ``Machine.memory`` says of one that was suspended and goes on from there.
SUSPENDED_MEMORY = "suspended"


class Remembered(msgspec.Struct, kw_only=True):
    """What became of a memory that was kept: its size in bytes, and for how many seconds its guest stood still. Both are 0 until it is."""

    size: int = 0
    pause: float = 0.0


@runtime_checkable
class TakesCopies(Protocol):
    """A driver whose machines may begin as copies of others that booted before, without anybody having named one."""

    def use_copies(self, policy: Copies) -> None: ...


@runtime_checkable
class KeepsMemory(Protocol):
    """A driver that can write down the memory of what runs, and begin with it."""

    def remember(self, id: str, memory: str) -> AbstractAsyncContextManager[Remembered]:
        """Keep the running instance's memory under the id *memory*. Inside the context the guest stands still, and its disks are as its
        memory knows them; after it, it goes on. Interrupted, nothing is kept and it goes on all the same.

        :raise Unsupported: when what runs cannot be kept (the sentence says why).
        """
        ...

    def let_go(self) -> int:
        """Give back the memory of what nobody begins with now: it is read again from disk. Returns of how many."""
        ...

    async def forget(self, memory: str) -> None:
        """Remove what was kept under *memory*. Those that began with it go on; nothing of that id is fine."""
        ...

    async def suspend(self, id: str) -> None:
        """Keep its memory and end it: ``observe`` then says SUSPENDED, and ``create`` goes on from there. Until its memory is safe on disk
        it runs; after a crash it is running or suspended."""
        ...

    async def take(self, machine: Machine) -> None:
        """Give one that was made ``resting`` its name, command and environment.

        :raise Conflict: when it was made as other hardware than *machine* asks for.
        """
        ...
