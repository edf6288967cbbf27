"""A disk in memory, served over NBD, that is slow where a test wants it to be (the NBD project's doc/proto.md).

What a read answers is what the disk held when it was asked, and a write is on it when it is answered.
"""

import asyncio
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_MAGIC, _OPTION, _REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _ANSWER = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
_ABORT, _GO = 2, 7
_ACK, _INFO, _UNSUPPORTED = 1, 3, 1 << 31 | 1
_READ, _WRITE, _END, _ZERO = 0, 1, 2, 6
_FLAGS = 1 | 1 << 2 | 1 << 6  # has flags; flushes; writes zeros


@dataclass
class SlowDisk:
    """``reads``, ``writes`` and ``zeros`` (without data) are the seconds that one takes."""

    socket: Path
    size: int
    reads: float = 0.0
    writes: float = 0.0
    zeros: float = 0.0
    content: bytearray = field(init=False)
    _busy: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def __post_init__(self) -> None:
        self.content = bytearray(self.size)

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._client, self.socket)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            if await self._greet(reader, writer):
                while await self._request(reader, writer):
                    pass
        writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(struct.pack(">QQH", _MAGIC, _OPTION, 1))
        await reader.readexactly(4)
        while True:
            _, option, length = struct.unpack(">QII", await reader.readexactly(16))
            await reader.readexactly(length)
            if option != _GO:
                writer.write(struct.pack(">QIII", _REPLY, option, _ACK if option == _ABORT else _UNSUPPORTED, 0))
                if option == _ABORT:
                    return False
                continue
            shape = struct.pack(">HQH", 0, self.size, _FLAGS)
            writer.write(struct.pack(">QIII", _REPLY, option, _INFO, len(shape)) + shape)
            writer.write(struct.pack(">QIII", _REPLY, option, _ACK, 0))
            return True

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        _, _, kind, handle, offset, length = _REQUEST.unpack(await reader.readexactly(_REQUEST.size))
        if kind == _END:
            return False
        data = await reader.readexactly(length) if kind == _WRITE else b""
        if kind == _READ:
            data = bytes(self.content[offset : offset + length])
        if kind == _ZERO:
            data = bytes(length)
        task = asyncio.create_task(self._answer(writer, kind, handle, offset, data))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)
        return True

    async def _answer(self, writer: asyncio.StreamWriter, kind: int, handle: int, offset: int, data: bytes) -> None:
        await asyncio.sleep({_READ: self.reads, _WRITE: self.writes, _ZERO: self.zeros}.get(kind, 0.0))
        if kind in (_WRITE, _ZERO):
            self.content[offset : offset + len(data)] = data
        writer.write(_ANSWER.pack(0x67446698, 0, handle) + (data if kind == _READ else b""))
