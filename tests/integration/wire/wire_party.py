"""A process of its own at one end of the wire: ``wire_party.py agent|desk BUNDLE``; prints its port, serves until it is killed."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lamella.model.assignment import Assignments, ImageProgress
from lamella.model.board import DesktopTicket
from lamella.model.capture import CaptureSpec
from lamella.model.contract import Mechanism
from lamella.model.errors import Corrupt, NotFound, Unsupported
from lamella.model.files import FileInfo, FileType
from lamella.model.host import HostStatus
from lamella.model.image import ImageStatus
from lamella.model.judgement import Judgement, Span, Verdict
from lamella.model.stream import Exit, Signal, Stderr, Stdin, StdinEnd, Stdout
from lamella.model.usage import LogEntry, Usage
from lamella.wire import listener
from lamella.wire.agent_service import serve_agent
from lamella.wire.certificates import Bundle
from lamella.wire.desk import serve_desk

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class EchoProcess:
    """Says back its input; ``flood`` writes 64 MiB and counts what was taken; ``hang`` says one line and then nothing."""

    def __init__(self, command: list[str], counts: dict[str, int]) -> None:
        self.command = command
        self.counts = counts
        self.out: asyncio.Queue[Any] = asyncio.Queue(maxsize=4)
        self.rest = 64 << 20 if command[0] == "flood" else 0
        if command[0] == "hang":
            self.out.put_nowait(Stderr(b"here"))
        if command[0] == "sink":
            self.counts["sink"] = 0

    async def send(self, frame: Any) -> None:
        match frame:
            case Stdin(data) if self.command[0] == "sink":
                await asyncio.sleep(0.05)
                self.counts["sink"] += len(data)
            case Stdin(data):
                await self.out.put(Stdout(data))
            case StdinEnd():
                await self.out.put(Exit(0))
            case Signal(number):
                await self.out.put(Exit(128 + number))

    async def receive(self) -> Any:
        if self.rest:
            await asyncio.sleep(0)
            self.rest -= 65536
            self.counts["flood"] = self.counts.get("flood", 0) + 65536
            if not self.rest:
                self.out.put_nowait(Exit(0))
            return Stdout(b"y" * 65536)
        frame = await self.out.get()
        if frame is None or isinstance(frame, Exit):
            self.out.put_nowait(None)
        return frame

    async def close(self) -> None:
        self.counts["closed"] = self.counts.get("closed", 0) + 1


class EchoAgent:
    """Every verb answers with what it was asked, so that a test sees that arguments arrive whole."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.files: dict[str, int] = {}

    async def wake(self, revision: int) -> None:
        self.counts["woken"] = revision

    async def exec(self, id: str, spec: Any) -> EchoProcess:
        if id == "inst_none":
            raise NotFound(f"there is no {id}", hint="look again", field="id")
        return EchoProcess(spec.command, self.counts)

    async def attach(self, id: str, *, start: bool) -> EchoProcess:
        return EchoProcess(["cat" if start else "hang"], self.counts)

    async def kill(self, id: str, signal: int) -> None:
        if signal > 64:
            raise Unsupported(f"there is no signal {signal}")

    async def logs(self, id: str, *, follow: bool, tail: int | None, since: datetime | None) -> AsyncIterator[LogEntry]:
        try:
            for number in range(tail or 3):
                yield LogEntry(at=since or EPOCH, stream="stdout", data=b"%d\n" % number)
            if follow:
                await asyncio.Event().wait()
        finally:
            self.counts["logs ended"] = self.counts.get("logs ended", 0) + 1

    async def stat(self, id: str, path: str) -> FileInfo:
        if path not in self.files:
            raise NotFound(f"there is nothing at {path}", field="path")
        return FileInfo(path=path, type=FileType.FILE, size=self.files[path], modified_at=EPOCH)

    async def list_directory(self, id: str, path: str) -> list[FileInfo]:
        return [await self.stat(id, file) for file in self.files]

    async def read_file(self, id: str, path: str) -> AsyncIterator[bytes]:
        if path == "/corrupt":
            yield b"begin"
            raise Corrupt("the disk lies")
        self.counts["read"] = 0
        for _ in range(8):
            self.counts["read"] += 8 << 20
            yield b"z" * (8 << 20)

    async def write_file(self, id: str, path: str, data: Any, *, mode: int, uid: int, gid: int) -> None:
        if path == "/refused":
            raise Unsupported("no file may be written there", field="path")
        size = 0
        try:
            async for chunk in data:
                size += len(chunk)
        except Exception:
            self.counts["broken uploads"] = self.counts.get("broken uploads", 0) + 1
            raise
        self.files[path] = size

    async def make_directory(self, id: str, path: str, *, mode: int, uid: int, gid: int) -> None:
        self.files[path] = mode + uid + gid

    async def usage(self, ids: list[str]) -> dict[str, Usage]:
        return {id: Usage(at=EPOCH, memory=len(id)) for id in ids}

    async def judgements(self, ids: list[str]) -> dict[str, list[Judgement]]:
        return {
            id: [
                Judgement(
                    subject="cpu",
                    guarantee=True,
                    verdict=Verdict.KEPT,
                    windows=[Span(window="1m", verdict=Verdict.KEPT, measured=60.0, evidence="it waited for nobody")],
                )
            ]
            for id in ids
        }

    async def mechanisms(self, id: str) -> list[Mechanism]:
        return [Mechanism(name=name, value=str(count), evidence=id) for name, count in self.counts.items()]

    async def reset(self, id: str) -> None:
        self.counts["reset"] = self.counts.get("reset", 0) + 1

    async def screenshot(self, id: str) -> bytes:
        if id == "box":
            raise Unsupported("a container has no screen", hint="take a vm")
        return b"\x89PNG" + bytes(4 << 20)

    async def input(self, id: str, input: Any) -> None:
        self.counts[f"{input.text}|{input.keys}|{[(at.x, at.y, at.buttons) for at in input.pointer]}"] = 1

    async def desktop(self, id: str, kind: str) -> DesktopTicket:
        return DesktopTicket(kind=kind, password=f"for {id}", certificate="PEM", expires="soon")

    async def screen(self, id: str, kind: str) -> EchoProcess:
        return EchoProcess([kind], self.counts)

    async def capture(self, id: str, wish: CaptureSpec) -> AsyncIterator[bytes]:
        yield f"{id} {wish.filter} {wish.packets}".encode()

    async def dump(self, id: str, *, crash: bool) -> AsyncIterator[bytes]:
        if crash:
            raise NotFound(f"{id} never crashed")
        try:
            for _ in range(8):
                yield b"m" * (8 << 20)
        finally:
            self.counts["dumps ended"] = self.counts.get("dumps ended", 0) + 1

    async def export_image(self, digest: str, format: str) -> AsyncIterator[bytes]:
        yield f"{digest} as {format}".encode()
        if format == "vdi":
            raise Corrupt("the disk lies")

    async def image(self, request: Any) -> AsyncIterator[ImageProgress]:
        yield ImageProgress(step=request.verb, done=1, total=2)
        yield ImageProgress(result=ImageStatus(digest=request.source))

    async def collect_images(self, keep: set[str]) -> int:
        return len(keep)

    async def facts(self) -> HostStatus:
        return HostStatus(cpu=2000, kernel="6.1")


class EchoDesk:
    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.told: list[str] = []

    async def register(self, name: str, status: HostStatus, address: str) -> str:
        return f"host_{name}"

    async def assignments(self, host: str, since: int, wait: float) -> Assignments:
        await asyncio.sleep(wait)
        return Assignments(
            revision=since + 1, complete=since == 0, gone=[report.id for report in self.reports], images=self.told
        )

    async def report(self, host: str, reports: list[Any]) -> None:
        self.reports += reports

    async def report_balancers(self, host: str, reports: list[Any]) -> None:
        self.told += [f"{report.id} {report.backends}" for report in reports]

    async def tell(self, host: str, events: list[Any]) -> None:
        self.told += [f"{event.type} {event.pool}" for event in events]


async def main(part: str, bundle: Path) -> None:
    sock = listener.bind_tcp("127.0.0.1", 0)
    print(sock.getsockname()[1], flush=True)
    certificate = Bundle.load(bundle)
    if part == "agent":
        await serve_agent(EchoAgent(), sock, certificate)
    else:
        await serve_desk(EchoDesk(), sock, certificate)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
