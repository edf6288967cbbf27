"""A line to a server that a test can cut."""

import asyncio
from contextlib import suppress


class Wire:
    """A server's port, as one reaches it over a line that is cut after so many bytes were sent, until it is mended."""

    def __init__(self, port: int) -> None:
        self._server = port
        self.left: int | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> asyncio.Server:
        server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    @property
    def cut(self) -> bool:
        return self.left == 0

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._server)
        self._ends |= {writer, there}
        await asyncio.gather(self._carry(reader, there, counted=True), self._carry(there_reader, writer, counted=False))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if counted and self.left is not None:
                    self.left = max(0, self.left - len(data))
                if self.cut:
                    for end in self._ends:
                        end.transport.abort()
                    self._ends.clear()
                    return
                writer.write(data)
                await writer.drain()
            writer.close()
