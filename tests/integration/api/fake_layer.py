"""A layer in memory: what the routes need to be tried, and nothing of what a layer is. Instances run by being said to run."""

import asyncio
import signal as signals
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from fake_backup import FakeBackup
from fake_balancers import FakeBalancers
from fake_networks import FakeFirewalls, FakeNetworks
from fake_routers import FakeAddresses, FakeRouters
from fake_storage import FakeStorage
from fake_templates import FakeTemplates

from lamella.control.creating import check_image_named
from lamella.control.metrics import Measured, exposition
from lamella.model.board import DesktopTicket
from lamella.model.contract import Comparison, Contract, Line, Mechanism, WhyNot
from lamella.model.errors import Conflict, Invalid, NotFound, StaleRevision, Unavailable, Unsupported
from lamella.model.files import FileInfo, FileType
from lamella.model.ids import check_image_name, check_name
from lamella.model.image import ImageSpec, ImageStatus
from lamella.model.instance import InstanceSpec, InstanceStatus, Phase
from lamella.model.kinds import KINDS
from lamella.model.operation import OperationPhase, OperationSpec, OperationStatus, ProjectSpec, ProjectStatus
from lamella.model.requests import About, Diagnosis, Explanation, Finding, Freed, Items
from lamella.model.resource import new_resource, now
from lamella.model.storage import PoolSpec, PoolStatus, SnapshotSpec, SnapshotStatus, VolumeSpec, VolumeStatus
from lamella.model.stream import Exit, Resize, Signal, Stderr, Stdin, StdinEnd, Stdout
from lamella.model.trace import Trace, TraceStep
from lamella.model.usage import LogEntry, Usage
from lamella.store.store import Change


class FakeStream:
    """A process that says back what it hears; ``command`` ["exit", N] ends at once, ["flood", BYTES] writes that much,
    ["vanish"] goes without an Exit, ["deaf"] never reads."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.out: asyncio.Queue[Any] = asyncio.Queue(maxsize=16)
        self.closed = False
        self.sent = 0
        self.seen: list[Any] = []
        self._flood = int(command[1]) if command[0] == "flood" else 0
        if command[0] == "exit":
            self.out.put_nowait(Exit(int(command[1])))
        if command[0] == "vanish":
            self.out.put_nowait(None)

    async def send(self, frame: Any) -> None:
        if self.closed:
            raise Unavailable("the process is gone")
        self.seen.append(type(frame).__name__)
        match frame:
            case Stdin(data):
                if self.command[0] == "deaf":
                    await asyncio.Event().wait()
                await self.out.put(Stdout(data))
            case StdinEnd():
                await self.out.put(Exit(0))
            case Resize(rows, columns):
                await self.out.put(Stderr(f"{rows}x{columns}".encode()))
            case Signal(number):
                await self.out.put(Exit(128 + number))

    async def receive(self) -> Any:
        if self._flood:
            await asyncio.sleep(0)
            size = min(self._flood, 32768)
            self._flood -= size
            self.sent += size
            if not self._flood:
                self.out.put_nowait(Exit(0))
            return Stdout(b"x" * size)
        frame = await self.out.get()
        if frame is None or isinstance(frame, Exit):
            self.out.put_nowait(None)
        return frame

    async def close(self) -> None:
        self.closed = True


def check_asked(spec: InstanceSpec) -> None:
    if spec.template is None:
        check_image_named(spec)
        check_image_name(spec.image)


class FakeLayer:
    def __init__(self) -> None:
        self.revision = 0
        self.rows: dict[str, Any] = {}
        self.log: list[Change] = []
        self.wakeup = asyncio.Condition()
        self.files: dict[str, bytes] = {}
        self.streams: list[FakeStream] = []
        self.pressed: list[Any] = []
        self.uploaded = 0
        self.storage = FakeStorage(self)
        self.backup = FakeBackup(self)
        self.networks, self.firewalls = FakeNetworks(self), FakeFirewalls(self)
        self.routers, self.addresses = FakeRouters(self), FakeAddresses(self)
        self.balancers = FakeBalancers(self)
        self.templates = FakeTemplates(self)
        self.keys: dict[str, str] = {}
        for name, spec, status, kind in (
            ("default", ProjectSpec(), ProjectStatus(), "project"),
            ("debian:12", ImageSpec(source="mmdebstrap:debian:12"), ImageStatus(), "image"),
            ("team/web:1.0", ImageSpec(source="docker://team/web:1.0"), ImageStatus(), "image"),
        ):
            self._put(new_resource(kind, name, spec, status))
        self._put(new_resource("pool", "default", PoolSpec(), PoolStatus()))
        data = self._put(new_resource("volume", "data", VolumeSpec(size=1 << 20), VolumeStatus(size=1 << 20)))
        self._put(new_resource("snapshot", "data@nightly", SnapshotSpec(volume=data.id), SnapshotStatus()))
        self._put(new_resource("instance", "web", InstanceSpec(image="debian:12"), InstanceStatus(phase=Phase.RUNNING)))

    def _put(self, row: Any, action: str = "created") -> Any:
        self.revision += 1
        row = msgspec.structs.replace(row, revision=self.revision)
        if action == "deleted":
            self.rows.pop(row.id)
        else:
            self.rows[row.id] = row
        self.log.append(
            Change(
                revision=self.revision,
                at=now(),
                action=action,
                kind=row.kind,
                id=row.id,
                project=row.project,
                name=row.name,
                resource=row,
            )
        )
        return row

    async def _announce(self) -> None:
        async with self.wakeup:
            self.wakeup.notify_all()

    def _find(self, project: str, kind: str, name: str) -> Any:
        for row in self.rows.values():
            if row.project == project and row.kind == kind and name in (row.name, row.id):
                return row
        raise NotFound(
            f"there is no {kind} {name!r} in project {project}", hint=f"lamella {kind} ls shows what there is"
        )

    async def about(self, who: Any) -> About:
        return About(version="0", role="all", revision=self.revision, you=who.name)

    async def get(self, who: Any, project: str, kind: str, name: str) -> Any:
        return self._find(project, kind, name)

    async def list(self, who: Any, project: str, kind: str, *, labels: Any, cursor: str, limit: int) -> Items:
        rows = [row for row in self.rows.values() if (row.project, row.kind) == (project, kind)]
        rows = [row for row in rows if labels.items() <= row.labels.items()]
        if cursor and not cursor.isdigit():
            raise Invalid(f"cursor {cursor!r} is not one of ours", field="cursor")
        start = int(cursor or 0) if len(cursor) < 9 else len(rows)
        more = start + limit < len(rows)
        return Items(
            items=rows[start : start + limit], cursor=str(start + limit) if more else "", revision=self.revision
        )

    async def watch(self, who: Any, project: str, kind: str | None, since: int) -> AsyncIterator[Change]:
        if since > self.revision:
            raise Conflict("the log does not reach there", hint="read the list again")
        while True:
            for change in [change for change in self.log if change.revision > since]:
                since = change.revision
                if change.project == project and kind in (None, change.kind):
                    yield change
            async with self.wakeup:
                while self.revision <= since:
                    await self.wakeup.wait()

    async def create_instance(
        self, who: Any, project: str, body: Any, *, wait: float, idempotency_key: str | None
    ) -> Any:
        if idempotency_key in self.keys:
            return self._find(project, "instance", self.keys[idempotency_key])
        name = body.name or f"box-{self.revision}"
        check_name(name)
        check_asked(body.spec)
        if any((row.project, row.kind, row.name) == (project, "instance", name) for row in self.rows.values()):
            raise Conflict(f"there is an instance {name!r} already", hint="choose another name", field="name")
        row = self._put(
            new_resource("instance", name, body.spec, InstanceStatus(), project=project, labels=body.labels)
        )
        if idempotency_key:
            self.keys[idempotency_key] = row.id
        await self._announce()
        return row

    async def put_instance(
        self, who: Any, project: str, name: str, body: Any, *, expected: int | None, wait: float
    ) -> Any:
        check_asked(body.spec)
        try:
            row = self._find(project, "instance", name)
        except NotFound:
            check_name(name)
            row = new_resource("instance", name, body.spec, InstanceStatus(), project=project)
        self._expect(row, expected)
        row = self._put(msgspec.structs.replace(row, spec=body.spec, labels=dict(body.labels)), "updated")
        await self._announce()
        return row

    async def patch(
        self, who: Any, project: str, kind: str, name: str, body: Any, *, expected: int | None, wait: float
    ) -> Any:
        row = self._find(project, kind, name)
        self._expect(row, expected)
        labels = dict(row.labels)
        for key, value in (body.labels if body.labels is not msgspec.UNSET else {}).items():
            labels.pop(key, None)
            if value is not None:
                labels[key] = value
        spec = row.spec
        if body.spec is not msgspec.UNSET:
            merged = {**msgspec.to_builtins(spec), **body.spec}
            merged = {key: value for key, value in merged.items() if value is not None}
            try:
                spec = msgspec.convert(merged, type(spec))
            except (msgspec.ValidationError, OverflowError) as error:
                raise Invalid(f"the patched spec is not valid: {error}", field="spec") from error
        row = self._put(msgspec.structs.replace(row, labels=labels, spec=spec), "updated")
        await self._announce()
        return row

    @staticmethod
    def _expect(row: Any, expected: int | None) -> None:
        if expected is not None and expected != row.revision:
            raise StaleRevision(
                f"{row.kind} {row.name} changed since {expected}", hint="read it again", field="If-Match"
            )

    async def delete(
        self, who: Any, project: str, kind: str, name: str, *, force: bool, expected: int | None, wait: float
    ) -> None:
        row = self._find(project, kind, name)
        self._expect(row, expected)
        if kind in ("project", "image"):
            raise Conflict(f"{kind} {name} is in use", hint="remove what uses it first")
        self._put(row, "deleted")
        await self._announce()

    async def power(self, who: Any, project: str, name: str, verb: str, *, timeout: float | None, wait: float) -> Any:
        row = self._find(project, "instance", name)
        phases = {"stop": Phase.STOPPED, "pause": Phase.PAUSED, "suspend": Phase.SUSPENDED}
        phase = phases.get(verb, Phase.RUNNING)
        status = msgspec.structs.replace(row.status, phase=phase)
        row = self._put(msgspec.structs.replace(row, status=status), "updated")
        await self._announce()
        return row

    async def fork(
        self, who: Any, project: str, name: str, body: Any, *, wait: float, idempotency_key: str | None
    ) -> Any:
        row = self._find(project, "instance", name)
        return self.storage.snapshots.operation(who, project, "fork", f"instance/{row.name}")

    async def kill(self, who: Any, project: str, name: str, signal: str) -> Any:
        row = self._find(project, "instance", name)
        if f"SIG{signal.removeprefix('SIG')}" not in signals.Signals.__members__ and signal not in ("9", "15"):
            raise Invalid(f"{signal!r} is not a signal", hint="TERM, KILL, HUP, …", field="signal")
        return row

    async def exec(self, who: Any, project: str, name: str, spec: Any) -> FakeStream:
        self._find(project, "instance", name)
        self.streams.append(FakeStream(spec.command))
        return self.streams[-1]

    async def attach(self, who: Any, project: str, name: str, *, start: bool) -> FakeStream:
        self._find(project, "instance", name)
        self.streams.append(FakeStream(["cat", str(start)]))
        return self.streams[-1]

    async def reset(self, who: Any, project: str, name: str) -> None:
        row = self._find(project, "instance", name)
        if row.spec.isolation == "container":
            raise Unsupported("a container has no reset button", hint="--isolation vm has one")
        self.pressed.append("reset")

    async def screenshot(self, who: Any, project: str, name: str) -> bytes:
        self._find(project, "instance", name)
        return b"\x89PNG\r\n" + name.encode()

    async def input(self, who: Any, project: str, name: str, input: Any) -> None:
        self._find(project, "instance", name)
        self.pressed.append(input)

    async def desktop(self, who: Any, project: str, name: str, *, kind: str) -> DesktopTicket:
        self._find(project, "instance", name)
        return DesktopTicket(kind=kind, password="once", certificate="PEM", expires="2026-01-01T00:00:00Z")

    async def screen(self, who: Any, project: str, name: str, *, kind: str) -> FakeStream:
        self._find(project, "instance", name)
        self.streams.append(FakeStream(["cat", kind]))
        return self.streams[-1]

    async def capture(self, who: Any, project: str, name: str, wish: Any) -> AsyncIterator[bytes]:
        self._find(project, "instance", name)
        if wish.nic:
            raise NotFound(f"{name} has no NIC {wish.nic!r}")
        yield bytes.fromhex("d4c3b2a1020004000000000000000000")
        yield bytes.fromhex("0000040001000000")

    async def dump(self, who: Any, project: str, name: str, *, crash: bool) -> AsyncIterator[bytes]:
        self._find(project, "instance", name)
        if crash:
            raise NotFound(f"{name} never crashed", hint="leave crash out to see its memory as it is")
        yield b"\x7fELF"
        yield b"core"

    async def export_image(self, who: Any, project: str, name: str, *, format: str) -> AsyncIterator[bytes]:
        self._find(project, "image", name)
        if name == "debian:12":
            yield b"half"
            raise Unavailable("the disk went away")
        yield f"{name} as {format}".encode()

    async def compare(self, who: Any) -> Comparison:
        return Comparison(levels=[], rows=[], not_promised=["anything"])

    async def why_not(self, who: Any, level: Any) -> WhyNot:
        return WhyNot(level=level, available=False, reasons=[])

    async def logs(
        self, who: Any, project: str, name: str, *, follow: bool, tail: int | None, since: Any
    ) -> AsyncIterator[LogEntry]:
        self._find(project, "instance", name)
        for number in range(3)[-tail if tail else 0 :] if tail != 0 else []:
            yield LogEntry(at=datetime(2026, 1, 1, tzinfo=UTC), stream="stdout", data=b"line %d\n" % number)
        if follow:
            await asyncio.Event().wait()

    async def stat(self, who: Any, project: str, name: str, path: str) -> FileInfo:
        self._find(project, "instance", name)
        if path not in self.files:
            raise NotFound(f"there is nothing at {path}", field="path")
        return FileInfo(path=path, type=FileType.FILE, size=len(self.files[path]), modified_at=now())

    async def list_directory(self, who: Any, project: str, name: str, path: str) -> Any:
        self._find(project, "instance", name)
        return [await self.stat(who, project, name, file) for file in self.files if file.startswith(path)]

    async def read_file(self, who: Any, project: str, name: str, path: str) -> AsyncIterator[bytes]:
        await self.stat(who, project, name, path)
        data = self.files[path]
        for start in range(0, len(data), 65536):
            if start and data[start : start + 5] == b"BREAK":
                raise Unavailable("the disk went away")
            yield data[start : start + 65536]

    async def write_file(
        self, who: Any, project: str, name: str, path: str, data: Any, *, mode: int, uid: int, gid: int
    ) -> None:
        self._find(project, "instance", name)
        self.uploaded = 0
        chunks: list[bytes] = []
        async for chunk in data:
            self.uploaded += len(chunk)
            if self.uploaded < 1 << 20:
                chunks.append(chunk)
        self.files[path] = b"".join(chunks)

    async def make_directory(
        self, who: Any, project: str, name: str, path: str, *, mode: int, uid: int, gid: int
    ) -> None:
        self._find(project, "instance", name)
        if path in self.files:
            raise Conflict(f"{path} is a file", field="path")

    async def usage(self, who: Any, project: str) -> dict[str, Usage]:
        return {
            row.name: Usage(at=now(), memory=1)
            for row in self.rows.values()
            if (row.project, row.kind) == (project, "instance")
        }

    async def metrics(self, who: Any) -> str:
        return exposition([Measured(instance=row) for row in self.rows.values() if row.kind == "instance"])

    async def contract(self, who: Any, project: str, name: str) -> Contract:
        row = self._find(project, "instance", name)
        return Contract(
            instance=row.name,
            id=row.id,
            read_at=now(),
            level=row.spec.isolation,
            driver="fake",
            observed=True,
            isolation=[Mechanism(name="none", value="none", evidence="tests")],
            guarantees=[],
            limits=[Line(subject="pids", value="4096")],
            accelerator="",
            accelerator_reason="",
            not_promised=["anything"],
        )

    async def trace(self, who: Any, project: str, name: str, *, to: str, protocol: Any, port: int, type: int) -> Trace:
        self._find(project, "instance", name)
        step = TraceStep(where="port", passes=True, because="it is in memory")
        return Trace(source="10.0.0.2", destination=to, protocol=protocol, port=port, passes=True, steps=[step])

    async def explain(self, who: Any, project: str, name: str) -> Explanation:
        return Explanation(instance=self._find(project, "instance", name).name, decisions=[])

    async def wait_for(self, who: Any, project: str, name: str, condition: str, timeout: float) -> Any:
        return self._find(project, "instance", name)

    async def create_image(self, who: Any, project: str, body: Any, *, wait: float) -> Any:
        if body.verb == "import":
            raise Unsupported("this fake imports nothing", hint="pull")
        spec = OperationSpec(verb=body.verb, subject=f"image/{body.name or body.source}", principal=who.name)
        row = new_resource(
            "operation", f"op-{self.revision}", spec, OperationStatus(phase=OperationPhase.DONE), project=project
        )
        return self._put(row)

    async def collect_images(self, who: Any) -> Freed:
        return Freed(bytes=0)

    async def doctor(self, who: Any) -> Diagnosis:
        return Diagnosis(findings=[Finding(level="ok", subject="everything", message="is in memory")])


assert set(KINDS)  # the routes are made from these
