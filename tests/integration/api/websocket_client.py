"""A WebSocket client on a Unix socket, as small as a test needs it."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from wsproto import ConnectionType, WSConnection, events


class WebSocketClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.pending: list[Any] = []
        self.partial = b""

    @classmethod
    async def open(cls, uds: Path, path: str) -> "WebSocketClient":
        client = cls(*await asyncio.open_unix_connection(str(uds), limit=65536))
        client.writer.write(client.protocol.send(events.Request(host="lamella", target=path)))
        client.accepted = await client.event()
        return client

    async def event(self) -> Any:
        while not self.pending:
            data = await self.reader.read(65536)
            if not data:
                return None
            self.protocol.receive_data(data)
            self.pending += self.protocol.events()
        return self.pending.pop(0)

    async def send(self, message: Any) -> None:
        self.writer.write(self.protocol.send(events.BytesMessage(data=msgspec.msgpack.encode(message))))
        await self.writer.drain()

    async def send_raw(self, event: Any) -> None:
        self.writer.write(self.protocol.send(event))
        await self.writer.drain()

    async def receive(self) -> Any:
        """A decoded binary message, a text, or the code of a close."""
        while True:
            event = await self.event()
            if isinstance(event, events.BytesMessage):
                self.partial += event.data
                if event.message_finished:
                    data, self.partial = self.partial, b""
                    return msgspec.msgpack.decode(data)
            elif isinstance(event, events.TextMessage):
                return event.data
            elif isinstance(event, events.CloseConnection):
                return event.code
            elif event is None:
                return None

    def close(self) -> None:
        self.writer.transport.abort()
