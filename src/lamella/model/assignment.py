"""What crosses between control and a host's agent, and the two Protocols: a direct call in one process, HTTPS between two.

Control asks the host through :class:`HostAgent`; the host asks control through :class:`ControlDesk`. Neither side imports the other.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

import msgspec

from lamella.model.balancer import BalancerReport, BalancerTask
from lamella.model.board import DesktopTicket, Input
from lamella.model.capture import CaptureSpec
from lamella.model.contract import Mechanism
from lamella.model.files import FileInfo
from lamella.model.firewall import Firewall
from lamella.model.host import HostSpec, HostStatus
from lamella.model.image import ImageStatus
from lamella.model.instance import Instance, InstanceStatus
from lamella.model.judgement import Judgement
from lamella.model.network import Neighbour, Network, Port
from lamella.model.router import RouterSpec
from lamella.model.storage import Pool, StorageEvent, Volume
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage


class Assignment(msgspec.Struct, kw_only=True):
    """One instance with everything that its host needs to make it so. ``revision`` is the newest of its parts.

    ``disks`` and ``ports`` are what it has beside the first volume and port, by device name; ``networks`` those of all ports, by id;
    ``volumes`` those of ``spec.volumes``, by name. What is ``retired`` is to be let go of for good: the host reports it as
    ``released``. A wasm module has no ``volume``. Where ``volume`` begins as a snapshot, ``source`` is the id of the volume that it is of.
    """

    revision: int
    instance: Instance
    volume: Volume | None = None
    source: str = ""
    port: Port | None = None
    network: Network | None = None
    disks: dict[str, Volume] = {}
    ports: dict[str, Port] = {}
    networks: dict[str, Network] = {}
    retired_volumes: list[Volume] = []
    retired_ports: list[Port] = []
    volumes: dict[str, Volume] = {}


class RouterTask(msgspec.Struct, kw_only=True):
    """A router as hosts are to have it. ``floating`` are addresses from outside, each with the address that it leads to."""

    id: str
    name: str
    spec: RouterSpec
    floating: dict[str, str] = {}


class Assignments(msgspec.Struct, kw_only=True):
    """What changed for one host since a revision. ``complete`` ones name everything; an id that is missing is not this host's.
    ``networks``, ``pools`` and ``firewalls`` are all that there are, when any of them has changed; ``None`` is no change. So are
    ``balancers``, with those of the host's instances that they lead to, and ``neighbours``, the ports on other hosts. ``outside`` are the
    subnets of external networks, told with the routers. ``policy`` is the host's own.
    """

    revision: int
    complete: bool
    instances: list[Assignment] = []
    gone: list[str] = []
    networks: list[Network] = []
    firewalls: list[Firewall] | None = None
    routers: list[RouterTask] | None = None
    outside: list[str] = []
    balancers: list[BalancerTask] | None = None
    neighbours: list[Neighbour] | None = None
    pools: list[Pool] = []
    images: list[str] = []
    policy: HostSpec | None = None


class InstanceReport(msgspec.Struct, kw_only=True):
    """What the host saw of an instance. ``removed`` says that nothing of it is left on the host.

    ``events`` are (type, message) pairs that happened since the last report, oldest first. ``released`` are the ids of volumes and
    ports that were retired and of which nothing is left.
    """

    id: str
    status: InstanceStatus
    removed: bool = False
    released: list[str] = []
    events: list[tuple[str, str]] = []


class ImageProgress(msgspec.Struct, kw_only=True):
    """A line of a long image verb: progress, or at the end ``result`` or an error."""

    step: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    result: ImageStatus | None = None
    error_code: str = ""
    error: str = ""
    hint: str = ""


class ImageRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``verb`` is ``pull`` (``source`` is docker://…), ``import`` (a path on the host) or ``build`` (a short name).

    ``disk`` has a build make a bootable disk too; ``initrd`` is a file that goes with an imported kernel.
    """

    verb: str
    source: str
    packages: list[str] = []
    disk: bool = False
    initrd: str = ""
    username: str = ""
    password: str = ""
    insecure: bool = False


class ControlDesk(Protocol):
    """What a host's agent may ask of control; control answers for the host that the caller proved to be."""

    async def register(self, name: str, status: HostStatus, address: str) -> str:
        """Say who and what this host is; returns the host's id."""
        ...

    async def assignments(self, host: str, since: int, wait: float) -> Assignments:
        """What changed after revision *since* (0: everything); waits up to *wait* seconds for something to have changed."""
        ...

    async def report(self, host: str, reports: list[InstanceReport]) -> None: ...

    async def report_balancers(self, host: str, reports: list[BalancerReport]) -> None:
        """What the host saw of balancers."""
        ...

    async def tell(self, host: str, events: list[StorageEvent]) -> None:
        """What befell the host's storage, oldest first."""
        ...


class HostAgent(Protocol):
    """What control may ask of a host. Verbs on an instance wait for its adoption after a start of the agent."""

    async def wake(self, revision: int) -> None:
        """Something for this host was committed at *revision*."""
        ...

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream: ...

    async def attach(self, id: str, *, start: bool) -> ProcessStream:
        """The instance's own streams; with *start* the command begins when the stream is in place, so nothing is missed."""
        ...

    async def kill(self, id: str, signal: int) -> None: ...

    def logs(self, id: str, *, follow: bool, tail: int | None, since: datetime | None) -> AsyncIterator[LogEntry]: ...

    async def stat(self, id: str, path: str) -> FileInfo: ...

    async def list_directory(self, id: str, path: str) -> list[FileInfo]: ...

    def read_file(self, id: str, path: str) -> AsyncIterator[bytes]: ...

    async def write_file(
        self, id: str, path: str, data: AsyncIterator[bytes], *, mode: int, uid: int, gid: int
    ) -> None: ...

    async def make_directory(self, id: str, path: str, *, mode: int, uid: int, gid: int) -> None: ...

    async def usage(self, ids: list[str]) -> dict[str, Usage]: ...

    async def mechanisms(self, id: str) -> list[Mechanism]: ...

    async def judgements(self, ids: list[str]) -> dict[str, list[Judgement]]:
        """Of those of *ids* that run here: what they were promised against what they got."""
        ...

    async def reset(self, id: str) -> None:
        """Press the reset button. These verbs and the next four raise :class:`Unsupported` where there is no such thing."""
        ...

    async def screenshot(self, id: str) -> bytes:
        """What the screen shows, as PNG."""
        ...

    async def input(self, id: str, input: Input) -> None: ...

    async def desktop(self, id: str, kind: str) -> DesktopTicket:
        """A new ticket for one viewer; *kind* is ``vnc`` or ``spice``. Any ticket that was not used is void then."""
        ...

    async def screen(self, id: str, kind: str) -> ProcessStream:
        """A viewer's connection: its bytes are ``Stdin`` frames, the screen's ``Stdout`` frames."""
        ...

    def dump(self, id: str, *, crash: bool) -> AsyncIterator[bytes]:
        """The guest's memory as an ELF core, now, or as it was when it crashed (:class:`NotFound` when it never did)."""
        ...

    def capture(self, id: str, wish: CaptureSpec) -> AsyncIterator[bytes]:
        """A capture file of what passes a port of the instance; it ends when nobody reads it any more."""
        ...

    def export_image(self, digest: str, format: str) -> AsyncIterator[bytes]:
        """The image's disk, as a file of that format."""
        ...

    def image(self, request: ImageRequest) -> AsyncIterator[ImageProgress]: ...

    async def collect_images(self, keep: set[str]) -> int: ...

    def storage(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]:
        """Carry out one request; errors are in the last line."""
        ...

    def export_volume(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]:
        """The volume, or one of its snapshots (an id), as a file of that format (``raw``, ``qcow2``, …)."""
        ...

    async def facts(self) -> HostStatus: ...
