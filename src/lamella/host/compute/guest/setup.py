"""What the host tells a guest about itself, and what the guest says of its state."""

from datetime import datetime
from enum import StrEnum

import msgspec


class GuestNetwork(msgspec.Struct, kw_only=True, frozen=True):
    """One interface as the guest should have it. ``address`` carries its prefix length; empty ``gateway`` is no default route. Without an
    ``address6`` it has no IPv6 but for its link-local address."""

    mac: str
    address: str
    gateway: str = ""
    mtu: int = 1500
    interface: str = "eth0"
    address6: str = ""
    gateway6: str = ""


class GuestSetup(msgspec.Struct, kw_only=True, frozen=True):
    """How an unconfigured microVM becomes the instance: its disks (by virtio-blk serial), name, network, clock and randomness.

    The root disk is read only (erofs, squashfs or ext4), the data disk is ext4, formatted by the host; the root that the
    instance sees is their overlay. ``pids`` bounds the processes in the guest, the agent not counted. ``time`` is set as the guest's clock.
    """

    hostname: str
    root_serial: str = "lamella-root"
    data_serial: str = "lamella-data"
    network: GuestNetwork | None = None
    nameservers: list[str] = []
    pids: int | None = None
    entropy: bytes = b""
    time: datetime | None = None


class GuestIdentity(msgspec.Struct, kw_only=True, frozen=True):
    """What a held guest shall be when it is let go. What is not given stays as it is; ``entropy`` (32 bytes to 64 KiB, used for nothing
    else before or after) always is given.

    ``hostname`` is what makes it *another* machine: its machine-id, the identity of its boot and its SSH host keys are then made
    anew, and the log of the instance until now is forgotten. Without one it is the same machine, later: a suspended one that goes on.

    ``network`` replaces all that its interface had: hardware address, addresses, routes, neighbours. The interface keeps its name; it is
    the one with ``former_mac``, or else of ``network.interface``'s name, or else the only one. ``drop_network`` leaves it without an
    address, and down. ``pids`` bounds the processes of a microVM (0: no bound). ``time`` is set as its clock.
    """

    entropy: bytes
    hostname: str = ""
    network: GuestNetwork | None = None
    former_mac: str = ""
    drop_network: bool = False
    nameservers: list[str] = []
    pids: int | None = None
    time: datetime | None = None


class GuestProcess(msgspec.Struct, kw_only=True, frozen=True):
    """The instance's own process. ``user`` is ``name|uid[:group|gid]``, resolved inside; empty is root.

    Environment, directory and user are also what every exec starts from. Without ``stdin`` it reads /dev/null.
    """

    command: list[str]
    environment: dict[str, str] = {}
    working_directory: str = "/"
    user: str = ""
    terminal: bool = False
    stdin: bool = False
    rows: int = 24
    columns: int = 80


class GuestPhase(StrEnum):
    """``WAITING`` for its setup, ``READY`` to start, ``RUNNING``, ``EXITED`` and not yet acknowledged.

    ``MACHINE``: the agent is a service of a machine that has an init of its own and runs no command of ours.
    """

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    EXITED = "exited"
    MACHINE = "machine"


class GuestHello(msgspec.Struct, kw_only=True, frozen=True):
    """Who answered: the protocol's version, the agent's mode (``init``, ``service`` or ``stdio``), and the kernel that it runs on."""

    version: int
    mode: str
    kernel: str


class GuestState(msgspec.Struct, kw_only=True, frozen=True):
    """``exit_code`` is 0 to 255, 128 + N after signal N; ``reason`` is set when the command never ran (126, 127).

    Log offsets count bytes of output since the start: ``log_start`` is the oldest byte still kept, ``log_end`` one past the newest,
    ``log_acknowledged`` the highest that the host said it has. ``held``: nothing runs in it but the agent (:meth:`GuestClient.hold`).
    """

    phase: GuestPhase
    pid: int | None = None
    exit_code: int | None = None
    reason: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    log_start: int = 0
    log_end: int = 0
    log_acknowledged: int = 0
    held: bool = False
