"""A host's agent over the wire, as control sees it: a ``HostAgent``. ``serve_agent`` is the other end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from lamella.model.assignment import ImageProgress, ImageRequest
from lamella.model.board import DesktopTicket, Input
from lamella.model.capture import CaptureSpec
from lamella.model.contract import Mechanism
from lamella.model.errors import LamellaError, Unavailable
from lamella.model.files import FileInfo
from lamella.model.host import HostStatus
from lamella.model.judgement import Judgement
from lamella.model.storage import Volume
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress
from lamella.model.stream import ExecSpec, Exit, FromProcess, ToProcess
from lamella.model.usage import LogEntry, Usage
from lamella.wire import verbs
from lamella.wire.certificates import Bundle
from lamella.wire.connection import Party
from lamella.wire.http import Caller
from lamella.wire.websocket import WebSocket

ItemT = TypeVar("ItemT")

_decode_frame = msgspec.msgpack.Decoder(FromProcess).decode
# Removing what is not used from a large library takes its time.
_COLLECT_SECONDS = 600.0
# A long text is typed key by key, as fast as a guest takes it.
_INPUT_SECONDS = 1800.0
_PIECE = 1 << 20


class RemoteAgent:
    """The agent of the host *name* at *address*. Every method may raise Unavailable."""

    def __init__(self, address: str, bundle: Bundle, *, name: str) -> None:
        self._party = Party(address, bundle.client_context(), role="host", name=name)
        self._caller = Caller(self._party)

    async def close(self) -> None:
        await self._caller.close()

    async def wake(self, revision: int) -> None:
        await self._caller.call("wake", verbs.Wake(revision=revision), verbs.Nothing)

    async def exec(self, id: str, spec: ExecSpec) -> "RemoteProcess":
        return await self._process("exec", verbs.Exec(id=id, spec=spec))

    async def attach(self, id: str, *, start: bool) -> "RemoteProcess":
        return await self._process("attach", verbs.Attach(id=id, start=start))

    async def kill(self, id: str, signal: int) -> None:
        await self._caller.call("kill", verbs.Kill(id=id, signal=signal), verbs.Nothing)

    def logs(self, id: str, *, follow: bool, tail: int | None, since: datetime | None) -> AsyncIterator[LogEntry]:
        return self._items("logs", verbs.Logs(id=id, follow=follow, tail=tail, since=since), LogEntry)

    async def stat(self, id: str, path: str) -> FileInfo:
        return await self._caller.call("stat", verbs.AtPath(id=id, path=path), FileInfo)

    async def list_directory(self, id: str, path: str) -> list[FileInfo]:
        return await self._caller.call("list_directory", verbs.AtPath(id=id, path=path), list[FileInfo])

    def read_file(self, id: str, path: str) -> AsyncIterator[bytes]:
        return self._bytes("read_file", verbs.AtPath(id=id, path=path))

    async def write_file(
        self, id: str, path: str, data: AsyncIterator[bytes], *, mode: int, uid: int, gid: int
    ) -> None:
        arguments = verbs.MakeAtPath(id=id, path=path, mode=mode, uid=uid, gid=gid)
        async with await WebSocket.open(self._party, "write_file", arguments) as socket:
            sending = asyncio.create_task(_send_chunks(socket, data))
            answer = asyncio.create_task(socket.receive())
            try:
                # Whoever refuses does so while we still send: its answer counts, not our broken pipe.
                await asyncio.wait({sending, answer}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
                await answer
            finally:
                sending.cancel()
                answer.cancel()
                await asyncio.gather(sending, answer, return_exceptions=True)

    async def make_directory(self, id: str, path: str, *, mode: int, uid: int, gid: int) -> None:
        arguments = verbs.MakeAtPath(id=id, path=path, mode=mode, uid=uid, gid=gid)
        await self._caller.call("make_directory", arguments, verbs.Nothing)

    async def usage(self, ids: list[str]) -> dict[str, Usage]:
        return await self._caller.call("usage", verbs.AskUsage(ids=ids), dict[str, Usage])

    async def mechanisms(self, id: str) -> list[Mechanism]:
        return await self._caller.call("mechanisms", verbs.AskMechanisms(id=id), list[Mechanism])

    async def judgements(self, ids: list[str]) -> dict[str, list[Judgement]]:
        return await self._caller.call("judgements", verbs.AskJudgements(ids=ids), dict[str, list[Judgement]])

    async def reset(self, id: str) -> None:
        await self._caller.call("reset", verbs.Machine(id=id), verbs.Nothing)

    async def screenshot(self, id: str) -> bytes:
        return await self._caller.call("screenshot", verbs.Machine(id=id), bytes)

    async def input(self, id: str, input: Input) -> None:
        await self._caller.call("input", verbs.Hands(id=id, input=input), verbs.Nothing, seconds=_INPUT_SECONDS)

    async def desktop(self, id: str, kind: str) -> DesktopTicket:
        return await self._caller.call("desktop", verbs.Screen(id=id, kind=kind), DesktopTicket)

    async def screen(self, id: str, kind: str) -> "RemoteProcess":
        return await self._process("screen", verbs.Screen(id=id, kind=kind))

    def dump(self, id: str, *, crash: bool) -> AsyncIterator[bytes]:
        return self._bytes("dump", verbs.Dump(id=id, crash=crash))

    def capture(self, id: str, wish: CaptureSpec) -> AsyncIterator[bytes]:
        return self._bytes("capture", verbs.Capture(id=id, wish=wish))

    def export_image(self, digest: str, format: str) -> AsyncIterator[bytes]:
        return self._bytes("export_image", verbs.ExportImage(digest=digest, format=format))

    def image(self, request: ImageRequest) -> AsyncIterator[ImageProgress]:
        return self._items("image", verbs.BringImage(request=request), ImageProgress)

    async def collect_images(self, keep: set[str]) -> int:
        return await self._caller.call("collect_images", verbs.CollectImages(keep=keep), int, seconds=_COLLECT_SECONDS)

    def storage(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]:
        return self._items("storage", verbs.Storage(request=request), StorageProgress)

    def export_volume(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]:
        return self._bytes("export_volume", verbs.ExportVolume(volume=volume, snapshot=snapshot, format=format))

    async def facts(self) -> HostStatus:
        return await self._caller.call("facts", verbs.Nothing(), HostStatus)

    async def _process(self, verb: str, arguments: msgspec.Struct) -> "RemoteProcess":
        socket = await WebSocket.open(self._party, verb, arguments)
        try:
            # An empty message says that the process is there; a refusal is raised here, not at the first frame.
            await socket.receive()
        except BaseException:
            await socket.close()
            raise
        return RemoteProcess(socket)

    async def _bytes(self, verb: str, arguments: msgspec.Struct) -> AsyncIterator[bytes]:
        async with await WebSocket.open(self._party, verb, arguments) as socket:
            while (data := await socket.receive()) is not None:
                yield data

    async def _items(self, verb: str, arguments: msgspec.Struct, type: type[ItemT]) -> AsyncIterator[ItemT]:
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(type)
        async with await WebSocket.open(self._party, verb, arguments) as socket:
            while (data := await socket.receive()) is not None:
                yield decoder.decode(data)


class RemoteProcess:
    """A ``ProcessStream`` at another host."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._ended = False

    async def send(self, frame: ToProcess) -> None:
        try:
            await self._socket.send(msgspec.msgpack.encode(frame))
        except Unavailable:
            raise
        except LamellaError as error:
            raise Unavailable(error.message, hint=error.hint) from error

    async def receive(self) -> FromProcess | None:
        if self._ended:
            return None
        with contextlib.suppress(LamellaError):
            data = await self._socket.receive()
            if data is not None:
                frame = _decode_frame(data)
                self._ended = isinstance(frame, Exit)
                return frame
        self._ended = True
        return None

    async def close(self) -> None:
        await self._socket.close()


async def _send_chunks(socket: WebSocket, data: AsyncIterator[bytes]) -> None:
    """Until the end of *data*, or until the party takes no more: its answer tells why.

    :raise Exception: whatever *data* raises.
    """
    async for chunk in data:
        for start in range(0, len(chunk), _PIECE):
            if not await _sent(socket, chunk[start : start + _PIECE]):
                return
    await _sent(socket, b"")


async def _sent(socket: WebSocket, data: bytes) -> bool:
    try:
        await socket.send(data)
    except LamellaError:
        return False
    return True
