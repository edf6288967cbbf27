"""The standard streams of an instance, as somebody who is attached has them."""

from contextlib import suppress

from lamella.host.compute.wasm import monitor
from lamella.host.compute.wasm.monitor import Connection, Kind, Packet
from lamella.model.errors import Unavailable
from lamella.model.signals import signal_number
from lamella.model.stream import (
    LARGEST_DATA,
    Exit,
    FromProcess,
    Resize,
    Signal,
    Stderr,
    Stdin,
    StdinEnd,
    Stdout,
    ToProcess,
)

# Signals that end nothing where nobody handles them (signal(7)).
HARMLESS = frozenset(signal_number(name) for name in ("CHLD", "CONT", "URG", "WINCH"))


class AttachedStream:
    """:class:`ProcessStream` over a connection of its own. The module lives on when it is closed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ended = False

    async def send(self, frame: ToProcess) -> None:
        match frame:
            case Stdin(data):
                for start in range(0, len(data), LARGEST_DATA):
                    await self._connection.send(b"I" + data[start : start + LARGEST_DATA])
            case StdinEnd():
                await self._connection.send(b"Z")
            case Signal(number):
                if number not in HARMLESS:
                    await monitor.interrupt(self._connection, number)
            case Resize():
                pass  # a module has no terminal

    async def receive(self) -> FromProcess | None:
        while not self._ended:
            packet = await self._receive()
            match packet:
                case None:
                    self._ended = True
                case Packet(kind=Kind.OUTPUT):
                    return Stdout(packet.data)
                case Packet(kind=Kind.ERRORS):
                    return Stderr(packet.data)
                case Packet(kind=Kind.ENDED):
                    self._ended = True
                    return Exit(code=packet.code, reason=packet.text)
                case _:
                    pass
        return None

    async def _receive(self) -> Packet | None:
        with suppress(Unavailable):
            return await self._connection.receive()
        return None

    async def close(self) -> None:
        self._ended = True
        self._connection.close()
