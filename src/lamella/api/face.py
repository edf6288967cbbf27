"""What the API asks of the layer behind it. ``lamella.control.layer.Layer`` is one; so is the in-memory one of the tests."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Literal, Protocol

from lamella.api.backup_face import BackupFace
from lamella.api.network_face import BalancersFace, FirewallsFace, NetworksFace
from lamella.api.router_face import AddressesFace, RoutersFace
from lamella.api.storage_face import StorageFace
from lamella.api.template_face import TemplatesFace
from lamella.model.board import DesktopTicket, Input
from lamella.model.capture import CaptureSpec
from lamella.model.contract import Comparison, Contract, WhyNot
from lamella.model.files import FileInfo
from lamella.model.firewall import Protocol as PacketProtocol
from lamella.model.instance import Instance, Isolation
from lamella.model.kinds import AnyResource
from lamella.model.operation import Operation
from lamella.model.requests import (
    About,
    Diagnosis,
    Explanation,
    Freed,
    ImageCreate,
    InstanceCreate,
    InstanceFork,
    Items,
    Principal,
    ResourcePatch,
    ResourcePut,
)
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.trace import Trace
from lamella.model.usage import LogEntry, Usage
from lamella.store.store import Change

PowerVerb = Literal["start", "stop", "restart", "pause", "resume", "suspend"]
DesktopKind = Literal["vnc", "spice"]
DiskFormat = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx"]
VolumeFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd"]
WaitCondition = Literal["settled", "stopped", "running", "removed"]


class LayerFace(Protocol):
    """Everything that can be asked; ``who`` has been identified and allowed already, and is passed on for the audit.

    ``wait`` is in seconds: how long to wait for the change to have happened (0: answer when it is recorded). ``expected`` is
    the revision that the writer has read. A ``name`` may be an id. Every method may raise any ``LamellaError``.
    """

    @property
    def storage(self) -> StorageFace: ...

    @property
    def backup(self) -> BackupFace: ...

    @property
    def networks(self) -> NetworksFace: ...

    @property
    def balancers(self) -> BalancersFace: ...

    @property
    def templates(self) -> TemplatesFace: ...

    @property
    def firewalls(self) -> FirewallsFace: ...

    @property
    def routers(self) -> RoutersFace: ...

    @property
    def addresses(self) -> AddressesFace: ...

    async def about(self, who: Principal) -> About: ...

    async def get(self, who: Principal, project: str, kind: str, name: str) -> AnyResource: ...

    async def list(
        self, who: Principal, project: str, kind: str, *, labels: dict[str, str], cursor: str, limit: int
    ) -> Items: ...

    def watch(self, who: Principal, project: str, kind: str | None, since: int) -> AsyncIterator[Change]: ...

    async def create_instance(
        self, who: Principal, project: str, body: InstanceCreate, *, wait: float, idempotency_key: str | None
    ) -> Instance: ...

    async def put_instance(
        self, who: Principal, project: str, name: str, body: ResourcePut, *, expected: int | None, wait: float
    ) -> Instance: ...

    async def patch(
        self,
        who: Principal,
        project: str,
        kind: str,
        name: str,
        body: ResourcePatch,
        *,
        expected: int | None,
        wait: float,
    ) -> AnyResource: ...

    async def delete(
        self, who: Principal, project: str, kind: str, name: str, *, force: bool, expected: int | None, wait: float
    ) -> None: ...

    async def power(
        self, who: Principal, project: str, name: str, verb: PowerVerb, *, timeout: float | None, wait: float
    ) -> Instance: ...

    async def fork(
        self,
        who: Principal,
        project: str,
        name: str,
        body: InstanceFork,
        *,
        wait: float,
        idempotency_key: str | None,
    ) -> Operation: ...

    async def kill(self, who: Principal, project: str, name: str, signal: str) -> Instance: ...

    async def exec(self, who: Principal, project: str, name: str, spec: ExecSpec) -> ProcessStream: ...

    async def attach(self, who: Principal, project: str, name: str, *, start: bool) -> ProcessStream: ...

    async def reset(self, who: Principal, project: str, name: str) -> None:
        """Press the reset button. This and the next five raise :class:`Unsupported` where there is no such thing."""
        ...

    async def screenshot(self, who: Principal, project: str, name: str) -> bytes:
        """What the screen shows, as PNG."""
        ...

    async def input(self, who: Principal, project: str, name: str, input: Input) -> None: ...

    async def desktop(self, who: Principal, project: str, name: str, *, kind: DesktopKind) -> DesktopTicket:
        """A new ticket for one viewer; one that was not used is void then."""
        ...

    async def screen(self, who: Principal, project: str, name: str, *, kind: DesktopKind) -> ProcessStream:
        """A viewer's connection: its bytes are ``Stdin`` frames, the screen's ``Stdout`` frames."""
        ...

    def capture(self, who: Principal, project: str, name: str, wish: CaptureSpec) -> AsyncIterator[bytes]:
        """A capture file of what passes a NIC of the instance, until nobody reads it any more."""
        ...

    def dump(self, who: Principal, project: str, name: str, *, crash: bool) -> AsyncIterator[bytes]:
        """The guest's memory as an ELF core, now, or as it was when it crashed (:class:`NotFound` when it never did)."""
        ...

    def logs(
        self, who: Principal, project: str, name: str, *, follow: bool, tail: int | None, since: datetime | None
    ) -> AsyncIterator[LogEntry]: ...

    async def stat(self, who: Principal, project: str, name: str, path: str) -> FileInfo: ...

    async def list_directory(self, who: Principal, project: str, name: str, path: str) -> "list[FileInfo]": ...

    def read_file(self, who: Principal, project: str, name: str, path: str) -> AsyncIterator[bytes]: ...

    async def write_file(
        self,
        who: Principal,
        project: str,
        name: str,
        path: str,
        data: AsyncIterator[bytes],
        *,
        mode: int,
        uid: int,
        gid: int,
    ) -> None: ...

    async def make_directory(
        self, who: Principal, project: str, name: str, path: str, *, mode: int, uid: int, gid: int
    ) -> None: ...

    async def usage(self, who: Principal, project: str) -> dict[str, Usage]: ...

    async def metrics(self, who: Principal) -> str:
        """What all instances use, and whether their contracts are kept, as Prometheus reads it."""
        ...

    async def contract(self, who: Principal, project: str, name: str) -> Contract: ...

    async def explain(self, who: Principal, project: str, name: str) -> Explanation: ...

    async def trace(
        self, who: Principal, project: str, name: str, *, to: str, protocol: PacketProtocol, port: int, type: int
    ) -> Trace: ...

    async def compare(self, who: Principal) -> Comparison:
        """The contracts of all isolation levels side by side."""
        ...

    async def why_not(self, who: Principal, level: Isolation) -> WhyNot:
        """What *level* needs on every host, and which of it is missing."""
        ...

    async def wait_for(
        self, who: Principal, project: str, name: str, condition: WaitCondition, timeout: float
    ) -> Instance: ...

    async def create_image(self, who: Principal, project: str, body: ImageCreate, *, wait: float) -> Operation: ...

    def export_image(self, who: Principal, project: str, name: str, *, format: DiskFormat) -> AsyncIterator[bytes]:
        """The image's disk, as a file of that format."""
        ...

    async def collect_images(self, who: Principal) -> Freed: ...

    async def doctor(self, who: Principal) -> Diagnosis: ...
