"""A stand-in for the layer behind the real API: an instance is a process of this machine, its files are a directory.

It isolates nothing. It is there so that streams, terminals, signals and files of the client meet real ones, without root.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal as signals
import struct
import termios
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from lamella.model.board import DesktopTicket
from lamella.model.contract import Comparison, ComparisonRow, Contract, LevelSummary, Line, Mechanism, Reason, WhyNot
from lamella.model.errors import (
    Conflict,
    Corrupt,
    DeadlineExceeded,
    Invalid,
    NotFound,
    StaleRevision,
    Unavailable,
    Unsupported,
)
from lamella.model.files import FileInfo, FileType
from lamella.model.image import Artifact, ArtifactKind, ImageSpec, ImageStatus
from lamella.model.image import Layer as ImageLayer
from lamella.model.instance import Decision, InstanceStatus, Phase, Power
from lamella.model.network import NetworkSpec, NetworkStatus
from lamella.model.operation import (
    EventSpec,
    EventStatus,
    OperationPhase,
    OperationSpec,
    OperationStatus,
    ProjectSpec,
    ProjectStatus,
)
from lamella.model.requests import About, Diagnosis, Explanation, Finding, Freed, Items
from lamella.model.resource import Condition, new_resource, now
from lamella.model.stream import Exit, Resize, Signal, Stderr, Stdin, StdinEnd, Stdout
from lamella.model.usage import LogEntry, Usage
from lamella.store.store import Change

_KINDS = {
    "wasm": ArtifactKind.MODULE,
    "elf": ArtifactKind.KERNEL,
    "qcow2": ArtifactKind.DISK,
    "iso": ArtifactKind.CDROM,
}


class LocalProcess:
    """A process of this machine as a ProcessStream; ``observe`` sees what it prints, ``ended`` its exit code."""

    def __init__(self, observe: Any = None, ended: Any = None) -> None:
        self._frames: asyncio.Queue[Any] = asyncio.Queue(maxsize=32)
        self._observe = observe or (lambda stream, data: None)
        self._ended = ended
        self._tasks: list[asyncio.Task[Any]] = []
        self._master = -1
        self.process: Any = None

    async def begin(
        self,
        command: list[str],
        *,
        environment: dict[str, str],
        cwd: str,
        terminal: bool,
        stdin: bool,
        rows: int = 24,
        columns: int = 80,
        timeout: float | None = None,
    ) -> None:
        variables = {"PATH": os.environ["PATH"], **environment}
        try:
            if terminal:
                self._master, slave = pty.openpty()
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                self.process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=slave,
                    stdout=slave,
                    stderr=slave,
                    env=variables,
                    cwd=cwd,
                    start_new_session=True,
                    preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
                )
                os.close(slave)
                pumps = [asyncio.create_task(self._read_terminal())]
            else:
                pipe = asyncio.subprocess.PIPE
                self.process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=pipe if stdin else asyncio.subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=pipe,
                    env=variables,
                    cwd=cwd,
                    start_new_session=True,
                )
                pumps = [
                    asyncio.create_task(self._read(self.process.stdout, Stdout, "stdout")),
                    asyncio.create_task(self._read(self.process.stderr, Stderr, "stderr")),
                ]
        except FileNotFoundError:
            self._tasks = [asyncio.create_task(self._end(127, f"{command[0]}: not found"))]
            return
        self._tasks = [*pumps, asyncio.create_task(self._watch(pumps, timeout))]

    async def _end(self, code: int, reason: str = "") -> None:
        if self._ended:
            await self._ended(code)
        await self._frames.put(Exit(code, reason))
        await self._frames.put(None)

    async def _watch(self, pumps: list[Any], timeout: float | None) -> None:
        late = False
        try:
            async with asyncio.timeout(timeout):
                code = await self.process.wait()
        except TimeoutError:
            late = True
            os.killpg(self.process.pid, signals.SIGKILL)
            code = await self.process.wait()
        await asyncio.gather(*pumps, return_exceptions=True)
        await self._end(124 if late else code if code >= 0 else 128 - code)

    async def _read(self, reader: Any, frame: Any, name: str) -> None:
        while data := await reader.read(32768):
            self._observe(name, data)
            await self._frames.put(frame(data))

    async def _read_terminal(self) -> None:
        while True:
            try:
                data = await asyncio.to_thread(os.read, self._master, 32768)
            except OSError:
                return
            if not data:
                return
            self._observe("stdout", data)
            await self._frames.put(Stdout(data))

    async def send(self, frame: Any) -> None:
        if self.process is None or self.process.returncode is not None:
            raise Unavailable("the process has ended")
        match frame:
            case Stdin(data) if self._master >= 0:
                await asyncio.to_thread(os.write, self._master, data)
            case Stdin(data) if self.process.stdin:
                try:
                    self.process.stdin.write(data)
                    await self.process.stdin.drain()
                except OSError as error:
                    raise Unavailable("the process reads no more") from error
            case StdinEnd() if self.process.stdin:
                self.process.stdin.close()
            case Resize(rows, columns) if self._master >= 0:
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            case Signal(number):
                os.killpg(self.process.pid, number)
            case _:
                pass

    async def receive(self) -> Any:
        return await self._frames.get()

    async def close(self) -> None:
        await self.kill()

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signals.SIGKILL)
            # Its pipes would be closed by the garbage collector, perhaps after the loop.
            self.process._transport.close()
            await self.process.wait()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


class Attached:
    """An instance's own process: it lives on when whoever watches goes."""

    def __init__(self, inner: LocalProcess) -> None:
        self.inner = inner
        self.send, self.receive = inner.send, inner.receive

    async def close(self) -> None:
        pass


class ProcessLayer:
    """``root`` is the directory in which every instance has its files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.revision = 0
        self.rows: dict[str, Any] = {}
        self.log: list[Change] = []
        self.wakeup = asyncio.Condition()
        self.processes: dict[str, LocalProcess] = {}
        self.printed: dict[str, list[LogEntry]] = {}
        self.lies: dict[str, list[FileInfo]] = {}
        self.slow = 0.0
        self.requests: list[str] = []
        self.brought: list[Any] = []
        self.hands: list[Any] = []
        self.resets: list[str] = []
        self.viewers: list[str] = []
        self.interfere = 0

    async def open(self) -> None:
        await self._put(new_resource("project", "default", ProjectSpec(), ProjectStatus()))
        layers = [ImageLayer(diff_id="sha256:" + "b" * 64, size=5 << 20)]
        image = ImageStatus(digest="sha256:" + "a" * 64, architecture="amd64", size=5 << 20, layers=layers)
        await self._put(new_resource("image", "debian:12", ImageSpec(source="mmdebstrap:debian:12"), image))
        await self._put(new_resource("network", "default", NetworkSpec(), NetworkStatus(gateway="10.83.0.1")))

    async def close(self) -> None:
        for process in self.processes.values():
            await process.kill()

    async def _put(self, row: Any, action: str = "created") -> Any:
        self.revision += 1
        row = msgspec.structs.replace(row, revision=self.revision)
        if action == "deleted":
            self.rows.pop(row.id, None)
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
        async with self.wakeup:
            self.wakeup.notify_all()
        return row

    async def _status(self, id: str, **changes: Any) -> Any:
        row = self.rows[id]
        row.status = msgspec.structs.replace(row.status, **changes)
        return await self._put(row, "updated")

    def _find(self, project: str, kind: str, name: str) -> Any:
        for row in self.rows.values():
            if (row.project, row.kind) == (project, kind) and name in (row.name, row.id):
                return row
        raise NotFound(
            f"there is no {kind} {name!r} in project {project}", hint=f"lamella {kind} ls shows what there is"
        )

    def _running(self, project: str, name: str) -> Any:
        row = self._find(project, "instance", name)
        if row.status.phase is not Phase.RUNNING:
            raise Conflict(f"{row.name} is {row.status.phase}", hint=f"lamella start {row.name}")
        return row

    async def about(self, who: Any) -> About:
        return About(version="0", role="all", revision=self.revision, you=who.name)

    async def get(self, who: Any, project: str, kind: str, name: str) -> Any:
        return self._find(project, kind, name)

    async def list(self, who: Any, project: str, kind: str, *, labels: Any, cursor: str, limit: int) -> Items:
        limit = min(limit, 3)  # so that every listing of more than three goes over pages
        rows = [row for row in self.rows.values() if (row.project, row.kind) == (project, kind)]
        rows = [row for row in rows if labels.items() <= row.labels.items()]
        start = int(cursor or 0)
        more = str(start + limit) if start + limit < len(rows) else ""
        return Items(items=rows[start : start + limit], cursor=more, revision=self.revision)

    async def watch(self, who: Any, project: str, kind: str | None, since: int) -> AsyncIterator[Change]:
        while True:
            for change in [change for change in self.log if change.revision > since]:
                since = change.revision
                if change.project == project and kind in (None, change.kind):
                    yield change
            async with self.wakeup:
                if self.revision <= since:
                    await self.wakeup.wait()

    async def _event(self, row: Any, type: str, message: str) -> None:
        spec = EventSpec(type=type, subject=row.id, subject_name=f"instance/{row.name}", message=message)
        await self._put(new_resource("event", f"e{self.revision}", spec, EventStatus()))

    async def create_instance(
        self, who: Any, project: str, body: Any, *, wait: float, idempotency_key: str | None
    ) -> Any:
        for name in (body.spec.image, *(cdrom.image for cdrom in body.spec.cdroms)):
            self._image(project, name)
        name = body.name or f"box{len(self.log)}"
        if any((row.kind, row.name) == ("instance", name) for row in self.rows.values()):
            raise Conflict(f"the name {name} is taken", hint="choose another", field="name")
        row = await self._put(
            new_resource("instance", name, body.spec, InstanceStatus(phase=Phase.STOPPED), labels=body.labels)
        )
        (self.root / row.id).mkdir()
        await self._event(row, "instance.created", f"{who.name} created {name}")
        if body.spec.power is Power.RUNNING:
            await asyncio.sleep(self.slow)
            await self._begin(row)
            await asyncio.sleep(0.05)
        return self.rows.get(row.id, row)

    def _image(self, project: str, name: str) -> None:
        if name == "scratch":
            return
        try:
            self._find(project, "image", name)
        except NotFound:
            raise NotFound(
                f"there is no image {name!r}", hint=f"make it: lamella image build {name}", field="spec.image"
            ) from None

    async def _begin(self, row: Any) -> LocalProcess:
        entries = self.printed.setdefault(row.id, [])

        async def ended(code: int) -> None:
            phase = Phase.FAILED if code == 127 else Phase.STOPPED
            bad = [
                Condition(
                    type="Ready",
                    status=False,
                    reason="NotFound",
                    message="there is no such command",
                    hint="look into the image",
                )
            ]
            await self._status(
                row.id, phase=phase, exit_code=code, finished_at=now(), conditions=bad if code == 127 else []
            )
            await self._event(row, "instance.stopped", f"exit code {code}")
            if row.spec.remove_on_exit:
                await self._put(self.rows[row.id], "deleted")

        process = LocalProcess(lambda stream, data: entries.append(LogEntry(at=now(), stream=stream, data=data)), ended)
        self.processes[row.id] = process
        await self._status(row.id, phase=Phase.RUNNING, started_at=now())
        await process.begin(
            [*(row.spec.entrypoint or []), *(row.spec.command or ["true"])],
            environment=row.spec.environment,
            cwd=row.spec.working_directory or str(self.root / row.id),
            terminal=row.spec.terminal,
            stdin=row.spec.stdin,
        )
        return process

    async def put_instance(self, *arguments: Any, **options: Any) -> Any:
        raise Invalid("not here")

    async def patch(
        self, who: Any, project: str, kind: str, name: str, body: Any, *, expected: int | None, wait: float
    ) -> Any:
        row = self._find(project, kind, name)
        if self.interfere:
            self.interfere -= 1
            row = await self._put(row, "updated")
        if expected is not None and expected != row.revision:
            raise StaleRevision(f"{row.name} changed since {expected}", hint="read it again")
        if body.spec is not msgspec.UNSET:
            row.spec = msgspec.convert({**msgspec.to_builtins(row.spec), **body.spec}, type(row.spec))
        if body.labels is not msgspec.UNSET:
            row.labels = {key: value for key, value in {**row.labels, **body.labels}.items() if value is not None}
        return await self._put(row, "updated")

    async def delete(
        self, who: Any, project: str, kind: str, name: str, *, force: bool, expected: int | None, wait: float
    ) -> None:
        row = self._find(project, kind, name)
        if kind == "instance" and row.status.phase in (Phase.RUNNING, Phase.PAUSED):
            if not force:
                raise Conflict(f"{row.name} is running", hint=f"lamella rm --force {row.name}")
            await self.processes[row.id].kill()
        await self._put(row, "deleted")

    async def power(self, who: Any, project: str, name: str, verb: str, *, timeout: float | None, wait: float) -> Any:
        row = self._find(project, "instance", name)
        if verb in ("stop", "restart") and row.id in self.processes:
            await asyncio.sleep(self.slow)
            await self.processes[row.id].kill()
            await self._status(row.id, phase=Phase.STOPPED, exit_code=137, finished_at=now())
        if verb in ("start", "restart"):
            await self._begin(row)
            await asyncio.sleep(0.05)
        if verb in ("pause", "resume"):
            await self._status(row.id, phase=Phase.PAUSED if verb == "pause" else Phase.RUNNING)
        return self.rows[row.id]

    async def kill(self, who: Any, project: str, name: str, signal: str) -> Any:
        row = self._running(project, name)
        await self.processes[row.id].send(Signal(getattr(signals, f"SIG{signal}")))
        return row

    async def exec(self, who: Any, project: str, name: str, spec: Any) -> Any:
        row = self._running(project, name)
        process = LocalProcess()
        await process.begin(
            spec.command,
            environment=spec.environment,
            cwd=spec.working_directory or str(self.root / row.id),
            terminal=spec.terminal,
            stdin=spec.stdin,
            rows=spec.rows,
            columns=spec.columns,
            timeout=spec.timeout,
        )
        return process

    async def attach(self, who: Any, project: str, name: str, *, start: bool) -> Any:
        row = self._find(project, "instance", name)
        return Attached(await self._begin(row) if start else self.processes[row.id])

    async def logs(
        self, who: Any, project: str, name: str, *, follow: bool, tail: int | None, since: datetime | None
    ) -> AsyncIterator[LogEntry]:
        row = self._find(project, "instance", name)
        entries = self.printed.setdefault(row.id, [])
        seen = 0 if tail is None else max(0, len(entries) - tail)
        while True:
            for entry in entries[seen:]:
                yield entry
            seen = len(entries)
            if not follow or row.id not in self.rows:
                return
            await asyncio.sleep(0.05)

    def _machine(self, project: str, name: str) -> Any:
        row = self._find(project, "instance", name)
        if row.spec.isolation == "container":
            raise Unsupported("a container has no screen and no buttons", hint="--isolation vm has")
        return row

    async def reset(self, who: Any, project: str, name: str) -> None:
        self.resets.append(self._machine(project, name).name)

    async def screenshot(self, who: Any, project: str, name: str) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + self._machine(project, name).name.encode()

    async def input(self, who: Any, project: str, name: str, input: Any) -> None:
        self._machine(project, name)
        self.hands.append(input)

    async def desktop(self, who: Any, project: str, name: str, *, kind: str) -> DesktopTicket:
        self._machine(project, name)
        return DesktopTicket(
            kind=kind,
            password="one-time",
            certificate="-----BEGIN CERTIFICATE-----\nQ0E=\n-----END CERTIFICATE-----\n" if kind == "vnc" else "",
            expires="2026-01-01T00:00:00Z",
        )

    async def screen(self, who: Any, project: str, name: str, *, kind: str) -> LocalProcess:
        """It says back what the viewer says."""
        self._machine(project, name)
        self.viewers.append(kind)
        process = LocalProcess()
        await process.begin(["cat"], environment={}, cwd="/", terminal=False, stdin=True)
        return process

    async def dump(self, who: Any, project: str, name: str, *, crash: bool) -> AsyncIterator[bytes]:
        row = self._machine(project, name)
        if crash:
            raise NotFound(f"{row.name} never crashed", hint="without --crash its memory is read as it is now")
        yield b"\x7fELF"
        for _ in range(48):
            yield bytes(1 << 20)
        yield b"end"

    async def export_image(self, who: Any, project: str, name: str, *, format: str) -> AsyncIterator[bytes]:
        self._find(project, "image", name)
        yield f"{name} as {format}".encode()
        if format == "vdi":
            raise Corrupt("the disk lies")

    async def compare(self, who: Any) -> Comparison:
        return Comparison(
            levels=[
                LevelSummary(level="container", what="namespaces", available=True, reason="crun is there"),
                LevelSummary(level="microvm", what="a kernel of its own", available=True, reason="QEMU is there"),
                LevelSummary(level="confidential", what="memory kept from the host", available=False, reason="no SEV"),
            ],
            rows=[
                ComparisonRow(
                    subject="kernel",
                    values={"container": "the host's", "microvm": "its own", "confidential": "its own"},
                )
            ],
            not_promised=["that it is fast"],
        )

    async def why_not(self, who: Any, level: Any) -> WhyNot:
        reasons = [
            Reason(host="here", need="SEV-SNP", available=False, reason="/dev/sev is not there"),
            Reason(host="here", need="QEMU", available=True, reason="version 7.2"),
        ]
        return WhyNot(level=level, available=False, reasons=reasons)

    def _path(self, project: str, name: str, path: str) -> tuple[Any, Path]:
        row = self._running(project, name)
        return row, self.root / row.id / path.lstrip("/")

    @staticmethod
    def _info(path: str, real: Path) -> FileInfo:
        stat = real.lstat()
        kind = FileType.SYMLINK if real.is_symlink() else FileType.DIRECTORY if real.is_dir() else FileType.FILE
        return FileInfo(
            path=path,
            type=kind,
            size=stat.st_size,
            mode=stat.st_mode & 0o7777,
            modified_at=datetime.fromtimestamp(stat.st_mtime, UTC),
            target=str(real.readlink()) if real.is_symlink() else "",
        )

    async def stat(self, who: Any, project: str, name: str, path: str) -> FileInfo:
        _, real = self._path(project, name, path)
        if not real.exists() and not real.is_symlink():
            raise NotFound(f"there is no {path} in {name}")
        return self._info(path, real)

    async def list_directory(self, who: Any, project: str, name: str, path: str) -> Any:
        if path in self.lies:
            return self.lies[path]
        _, real = self._path(project, name, path)
        return [self._info(f"{path.rstrip('/')}/{child.name}", child) for child in sorted(real.iterdir())]

    async def read_file(self, who: Any, project: str, name: str, path: str) -> AsyncIterator[bytes]:
        _, real = self._path(project, name, path)
        if not real.is_file():
            raise NotFound(f"there is no file {path} in {name}")
        data = real.read_bytes()
        for start in range(0, len(data), 65536):
            yield data[start : start + 65536]

    async def write_file(
        self, who: Any, project: str, name: str, path: str, data: Any, *, mode: int, uid: int, gid: int
    ) -> None:
        _, real = self._path(project, name, path)
        if not real.parent.is_dir():
            raise NotFound(f"there is no directory {Path(path).parent} in {name}")
        with real.open("wb") as file:
            async for piece in data:
                file.write(piece)
        real.chmod(mode)

    async def make_directory(
        self, who: Any, project: str, name: str, path: str, *, mode: int, uid: int, gid: int
    ) -> None:
        _, real = self._path(project, name, path)
        real.mkdir(parents=True, exist_ok=True)

    async def usage(self, who: Any, project: str) -> dict[str, Usage]:
        found = [row for row in self.rows.values() if row.kind == "instance" and row.status.phase is Phase.RUNNING]
        seconds = asyncio.get_running_loop().time()
        return {row.name: Usage(at=now(), cpu_seconds=seconds / 2, memory=3 << 20, processes=1) for row in found}

    async def contract(self, who: Any, project: str, name: str) -> Contract:
        row = self._find(project, "instance", name)
        return Contract(
            instance=row.name,
            id=row.id,
            read_at=now(),
            level="container",
            driver="none",
            observed=True,
            isolation=[Mechanism(name="nothing", value="at all", evidence="/proc/self")],
            guarantees=[],
            limits=[Line(subject="memory", value="512MiB", enforced_by="nobody")],
            accelerator="",
            accelerator_reason="",
            not_promised=["that it is isolated"],
        )

    async def explain(self, who: Any, project: str, name: str) -> Explanation:
        row = self._find(project, "instance", name)
        return Explanation(
            instance=row.name,
            decisions=[Decision(at=now(), what="host", chosen="here", because="there is one \x1b[31mhost")],
        )

    async def wait_for(self, who: Any, project: str, name: str, condition: str, timeout: float) -> Any:
        row = self._find(project, "instance", name)

        async def until() -> Any:
            while True:
                latest = self.rows.get(row.id)
                phase = latest.status.phase if latest else None
                if latest is None or condition == "settled" or (condition == "running" and phase is Phase.RUNNING):
                    return latest or row
                if condition == "stopped" and phase in (Phase.STOPPED, Phase.FAILED):
                    return latest
                await asyncio.sleep(0.01)

        try:
            return await asyncio.wait_for(until(), timeout)
        except TimeoutError:
            raise DeadlineExceeded(f"{row.name} is not {condition} after {timeout:g} s") from None

    async def create_image(self, who: Any, project: str, body: Any, *, wait: float) -> Any:
        name = body.name or body.source.rpartition("/")[2]
        self.brought.append(body)
        row = await self._put(
            new_resource(
                "operation",
                f"op{self.revision}",
                OperationSpec(verb=body.verb, subject=f"image/{name}"),
                OperationStatus(),
            )
        )

        async def work() -> None:
            for step in range(5):
                await asyncio.sleep(0.02 + self.slow / 5)
                await self._status(row.id, step="layer", done=step << 20, total=5 << 20, unit="bytes")
            if "absent" in body.source:
                await self._status(
                    row.id,
                    phase=OperationPhase.FAILED,
                    error_code="not-found",
                    error="the registry does not have it",
                    hint="look at its tags",
                )
                return
            known = [row for row in self.rows.values() if (row.kind, row.name) == ("image", name)]
            for row_before in known:
                await self._put(row_before, "deleted")
            kind = _KINDS.get(name.rpartition(".")[2])
            digest = "sha256:" + "c" * 64
            artifacts = [Artifact(kind=kind, digest=digest, size=1 << 30, stored=1 << 20)] if kind else []
            status = ImageStatus(digest=digest, artifacts=artifacts)
            await self._put(new_resource("image", name, ImageSpec(source=body.source), status))
            await self._status(row.id, phase=OperationPhase.DONE, result=name)

        self.working = asyncio.create_task(work())
        return row

    async def collect_images(self, who: Any) -> Freed:
        return Freed(bytes=3 << 20)

    async def doctor(self, who: Any) -> Diagnosis:
        return Diagnosis(
            findings=[
                Finding(level="ok", subject="kvm", message="it is there"),
                Finding(level="warning", subject="swap", message="none", hint="add some"),
            ]
        )
