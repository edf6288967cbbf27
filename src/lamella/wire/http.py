"""Calls to a party: one request, one answer, over connections that are kept for the next call (h11 on asyncio's streams)."""

import asyncio
import time
from typing import Any, TypeVar

import h11
import msgspec

from lamella.model.errors import Internal, Unavailable
from lamella.wire.connection import PIECE, Party
from lamella.wire.problem import read_error

ResultT = TypeVar("ResultT")

CALL_SECONDS = 60.0
_LARGEST_ANSWER = 256 << 20
_IDLE_SECONDS = 45.0
_IDLE_CONNECTIONS = 8


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=64 << 10)
        self.idle_since = 0.0

    def fresh(self) -> bool:
        return not self.reader.at_eof() and time.monotonic() - self.idle_since < _IDLE_SECONDS

    def close(self) -> None:
        self.writer.transport.abort()


class Caller:
    """Makes calls to one party. ``close`` lets go of what is kept."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self._idle: list[_Connection] = []

    async def call(
        self, verb: str, arguments: msgspec.Struct, result: type[ResultT], *, seconds: float = CALL_SECONDS
    ) -> ResultT:
        """Ask for *verb*; a generic alias may stand for *result*.

        :raise LamellaError: what the party answers.
        :raise Unavailable: when it does not, within *seconds*.
        """
        body = msgspec.msgpack.encode(arguments)
        try:
            async with asyncio.timeout(seconds):
                status, answer = await self._exchange(verb, body)
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            raise self.party.failure(error) from error
        if status != 200:
            raise read_error(answer, status=status)
        try:
            return msgspec.msgpack.decode(answer, type=result)
        except msgspec.MsgspecError as error:
            raise Internal(f"the answer of {self.party} to {verb} is not understood: {error}") from error

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _exchange(self, verb: str, body: bytes) -> tuple[int, bytes]:
        connection = await self._take()
        try:
            headers = [("host", self.party.authority), ("content-length", str(len(body)))]
            request = h11.Request(method="POST", target=f"/{verb}", headers=headers)
            protocol, writer = connection.protocol, connection.writer
            writer.write(protocol.send(request) or b"")
            writer.write(protocol.send(h11.Data(data=body)) or b"")
            writer.write(protocol.send(h11.EndOfMessage()) or b"")
            await writer.drain()
            answer = await self._read(connection)
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return answer

    async def _read(self, connection: _Connection) -> tuple[int, bytes]:
        status, body = 0, bytearray()
        while True:
            event: Any = connection.protocol.next_event()
            if event is h11.NEED_DATA:
                connection.protocol.receive_data(await connection.reader.read(PIECE))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _LARGEST_ANSWER:
                    raise Unavailable(f"{self.party} answers without end", hint="look into its log")
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(body)
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("it hung up before it answered")

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh():
                return connection
            connection.close()
        return _Connection(*await self.party.connect())

    def _keep(self, connection: _Connection) -> None:
        done = connection.protocol.our_state is h11.DONE and connection.protocol.their_state is h11.DONE
        if not done or len(self._idle) >= _IDLE_CONNECTIONS:
            connection.close()
            return
        connection.protocol.start_next_cycle()
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
