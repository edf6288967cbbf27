"""The instance: image + isolation + cpu, memory, disks, nics + restart; its phases and what was seen of it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.bit_rate import BitRate
from lamella.model.board import Board, Cdrom, DeviceName, Directory, Disk, Seed, Usb
from lamella.model.contract import Mechanism
from lamella.model.mount import VolumeMount
from lamella.model.resource import Condition, Resource

Text = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")]
Argument = Annotated[str, Meta(max_length=131072, pattern=r"^[^\x00]*$")]
VariableName = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[^=\x00]+$(?!\n)")]
TcpPort = Annotated[int, Meta(ge=1, le=65535)]


class Isolation(StrEnum):
    """The levels that this layer has; ``docs/isolation.md`` helps to choose."""

    CONTAINER = "container"
    WASM = "wasm"
    MICROVM = "microvm"
    UNIKERNEL = "unikernel"
    VM = "vm"
    CONFIDENTIAL = "confidential"


# Levels that are a whole machine, whose disk begins as a clone of the image's.
MACHINES = frozenset({Isolation.VM, Isolation.CONFIDENTIAL})
# Levels that take volumes over a socket (NBD), as well as files.
TAKES_SOCKETS = frozenset({Isolation.MICROVM, Isolation.VM})
# How long an instance has to end, in seconds, before it is forced; a whole operating system ends its services first.
STOP_TIMEOUT = 10.0
MACHINE_STOP_TIMEOUT = 60.0


class Power(StrEnum):
    """What a person wants the instance to be doing."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    # Its memory lies in a file, and nothing of it runs.
    SUSPENDED = "suspended"
    # Made up to the moment before its command, which it waits to be told.
    READY = "ready"


class RestartMode(StrEnum):
    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    UNLESS_STOPPED = "unless-stopped"


class RestartPolicy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to do when the command ends by itself. ``retries`` bounds ``on-failure``; 0 is no bound."""

    mode: RestartMode = RestartMode.NO
    retries: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Publish(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A port of the host that leads to a port of the instance. ``host_port`` 0 lets the layer choose."""

    host_address: str = "0.0.0.0"
    host_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    port: TcpPort
    protocol: Annotated[str, Meta(pattern=r"^(tcp|udp)$(?!\n)")] = "tcp"


class Priority(StrEnum):
    """Who gives way first when a host has too little: the lowest."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class Nic(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A port on *network*. The first has no need of a ``name``; one that is plugged into a running machine has. Without an ``address``
    it gets a free one of the network's subnet, and so with ``address6`` where the network has IPv6. ``firewalls`` are names: what they
    allow may come in, and nothing else. Without one the project's default guards it; with ``none`` alone, or without a default, whatever is
    on the network may come in. ``rate_in`` and ``rate_out`` are ceilings in bits a second, frames and all."""

    name: DeviceName | None = None
    network: str = "default"
    address: Annotated[str, Meta(max_length=15, pattern=r"^[0-9.]*$(?!\n)")] = ""
    address6: Annotated[str, Meta(max_length=39, pattern=r"^[0-9a-fA-F:]*$(?!\n)")] = ""
    publish: list[Publish] = []
    firewalls: Annotated[list[str], Meta(max_length=16)] = []
    rate_in: BitRate | None = None
    rate_out: BitRate | None = None


class InstanceSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was asked. ``None`` means: as the image says, or no limit.

    ``cpu`` is a ceiling in milli-cores (a machine gets that rounded up in vCPUs), ``memory`` in bytes, ``disk`` the size of the
    writable layer in bytes. ``cpu_guarantee`` and ``memory_guarantee`` are what it gets whatever others do, in the same units: 0 unless
    asked, never above the ceiling. With ``cpu_pin`` its ceiling is whole cores that nobody else has, all their threads.
    ``stop_timeout`` is in seconds, 10 unless asked, 60 for a full machine. ``epoch`` counts the runs that were asked for; the layer
    keeps it. The run with the number ``attach_epoch`` begins when somebody has attached (or after a minute): nothing is missed.
    ``grace`` is the ``stop_timeout`` of the stop or restart that was asked last; the layer keeps it too.

    ``huge_pages`` is the size in bytes of the pages that a machine's memory is made of: of those that the host has set apart.

    ``volumes`` are those with a life of their own: they stay when the instance goes.

    ``template`` is the name of one that it begins as a copy of: its image, its isolation and its sizes are the template's, and may be
    left out. Without one there is an image, and a machine begins as a copy of one that booted before, where its host keeps such and it is
    not to be ``cold``.

    ``board``, ``disks``, ``cdroms``, ``usb`` and ``seed`` are a full machine's; ``directories`` a WebAssembly module's, as are
    ``fuel`` (how many of its instructions may run in all) and ``deadline`` (for how many seconds it may run).
    """

    image: Annotated[str, Meta(max_length=512)] = ""
    isolation: Isolation = Isolation.CONTAINER
    command: list[Argument] | None = None
    entrypoint: list[Argument] | None = None
    environment: dict[VariableName, Argument] = {}
    working_directory: Text | None = None
    user: Text | None = None
    hostname: Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$(?!\n)")] | None = None
    terminal: bool = False
    stdin: bool = False
    cpu: Annotated[int, Meta(ge=10, le=1_000_000)] | None = None
    memory: Annotated[int, Meta(ge=4 << 20, le=1 << 50)] | None = None
    cpu_guarantee: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    memory_guarantee: Annotated[int, Meta(ge=0, le=1 << 50)] | None = None
    cpu_pin: bool = False
    priority: Priority = Priority.NORMAL
    huge_pages: Annotated[int, Meta(ge=64 << 10, le=1 << 40)] | None = None
    pids: Annotated[int, Meta(ge=1, le=4_000_000)] = 4096
    disk: Annotated[int, Meta(ge=1 << 20, le=1 << 56)] | None = None
    nics: Annotated[list[Nic], Meta(max_length=8)] = []
    board: Board = msgspec.field(default_factory=Board)
    disks: Annotated[list[Disk], Meta(max_length=16)] = []
    cdroms: Annotated[list[Cdrom], Meta(max_length=4)] = []
    usb: Annotated[list[Usb], Meta(max_length=8)] = []
    seed: Seed = msgspec.field(default_factory=Seed)
    directories: Annotated[list[Directory], Meta(max_length=32)] = []
    volumes: Annotated[list[VolumeMount], Meta(max_length=16)] = []
    fuel: Annotated[int, Meta(ge=1, le=1 << 62)] | None = None
    deadline: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    template: Annotated[str, Meta(min_length=1, max_length=63)] | None = None
    cold: bool = False
    restart: RestartPolicy = msgspec.field(default_factory=RestartPolicy)
    stop_signal: Annotated[str, Meta(pattern=r"^[A-Z0-9+-]{1,16}$(?!\n)")] | None = None
    stop_timeout: Annotated[float, Meta(ge=0, le=86400)] | None = None
    remove_on_exit: bool = False
    power: Power = Power.RUNNING
    epoch: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    attach_epoch: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    grace: Annotated[float, Meta(ge=0, le=86400)] | None = None

    @property
    def device_names(self) -> list[str]:
        """Names of all devices that may come and go, sorted: the disks, drives, USB devices, and the NICs but for the first."""
        named = [item.name for group in (self.disks, self.cdroms, self.usb) for item in group]
        return sorted([*named, *(nic.name or "" for nic in self.nics[1:])])


class Phase(StrEnum):
    """Where an instance is in its life; ``docs/architecture.md`` draws the arrows."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETING = "deleting"


class Decision(msgspec.Struct, kw_only=True):
    """One choice that made the instance what it is: what was decided, the answer, and why."""

    at: datetime
    what: str
    chosen: str
    because: str


class Beginning(msgspec.Struct, kw_only=True, frozen=True):
    """The run with the number ``epoch`` begins with the memory that was kept in ``snapshot`` (an id) and goes on from there: with ``fresh``
    as another machine, with a name, addresses, keys and randomness of its own."""

    snapshot: str
    epoch: int
    fresh: bool = False


class InstanceStatus(msgspec.Struct, kw_only=True):
    """What was seen. ``exit_code`` is of the last run that ended: 0 to 255, 128 + N after signal N.

    ``image_digest`` is what the reference meant when the instance was made; ``mechanisms`` were read from the running thing;
    ``launched_*`` is the size that the running thing cannot grow beyond (a microVM: what it booted with).

    ``disks`` and ``ports`` are the ids of the volumes and ports beside the first, by device name; ``cdroms`` the digests of the
    images in the drives; ``volumes`` the ids of ``spec.volumes`` by name. ``board`` is the machine type that the first start chose
    (``pc-q35-7.2``): every later one is the same.
    ``devices`` are the names of what is plugged in now and can be unplugged; ``retired`` the ids of volumes and ports that go as soon
    as the host has let go of them. ``beginning`` is what a run goes on from, ``template`` the id of the template that it was made of.
    ``cpus`` are those of the host that are its own, ``nodes`` those whose memory is near them.
    """

    phase: Phase = Phase.PENDING
    conditions: list[Condition] = []
    observed_generation: int = 0
    host: str | None = None
    image_digest: str = ""
    driver: str = ""
    epoch: int = 0
    pid: int | None = None
    exit_code: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    restarts: int = 0
    address: str | None = None
    mac: str | None = None
    published: list[Publish] = []
    volume: str | None = None
    port: str | None = None
    disks: dict[str, str] = {}
    ports: dict[str, str] = {}
    cdroms: dict[str, str] = {}
    retired: list[str] = []
    volumes: dict[str, str] = {}
    beginning: Beginning | None = None
    template: str = ""
    board: str = ""
    devices: list[str] = []
    id_base: int = 0
    cpus: list[int] = []
    nodes: list[int] = []
    launched_cpu: int | None = None
    launched_memory: int | None = None
    accelerator: str = ""
    accelerator_reason: str = ""
    mechanisms: list[Mechanism] = []
    decisions: list[Decision] = []


Instance = Resource[InstanceSpec, InstanceStatus]
