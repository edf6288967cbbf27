"""A machine's screen for a viewer of the person's own: VNC or SPICE, let in by a ticket, once.

QEMU listens nowhere. A viewer's connection is one end of a pair of sockets that is given to it; the other end is a
``ProcessStream`` that the API carries. VNC is VeNCrypt X509Vnc (TLS, then a password): QEMU itself ends the TLS, so that
nobody on the way reads the screen or the keys. SPICE goes as it is inside what carries it, its password encrypted to
QEMU's key: its TLS exists only behind a port that listens.

Sources: the RFB protocol (``rfbproto.rst``, VeNCrypt), ``spice-protocol`` (link messages), QEMU's ``add_client``, ``set_password``.
"""

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import msgspec

from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.vm.certificates import AUTHORITY
from lamella.model.board import Board, DesktopTicket, Graphics
from lamella.model.errors import Conflict, LamellaError, Unavailable, Unsupported
from lamella.model.resource import now
from lamella.model.stream import LARGEST_DATA, Exit, FromProcess, Resize, Signal, Stdin, StdinEnd, Stdout, ToProcess

VNC, SPICE = "vnc", "spice"

# Where the room shows the directory of certificates.py.
CERTIFICATES = "/screen"

LIFE = 60
# VNC hashes with DES: of a password, no more than eight characters count.
_LENGTH = 8
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"

_LINK = struct.Struct("<4sIIIIB")
_MAIN_CHANNEL = 1


def cold_arguments(board: Board, certificates: str = CERTIFICATES) -> list[str]:
    """Screens without a listener; *certificates* is a directory as QEMU sees it."""
    if board.graphics is Graphics.NONE:
        return []
    credentials = f"tls-creds-x509,id=screen-tls,endpoint=server,dir={certificates},verify-peer=off"
    arguments = ["-object", credentials, "-vnc", "none,tls-creds=screen-tls,password=on"]
    # Ticketing is on unless it is switched off: without a password that was set, nobody is let in.
    return [*arguments, "-spice", "port=0,disable-ticketing=off"] if board.spice else arguments


class _Ticket(msgspec.Struct, kw_only=True):
    ends: float
    used: bool = False


class Desktop:
    """The tickets of one machine that runs. They live here and nowhere else: whoever adopts the machine gives out new ones."""

    def __init__(self, board: Board, certificates: Path) -> None:
        self._board = board
        self._certificates = certificates
        self._tickets: dict[str, _Ticket] = {}

    async def ticket(self, monitor: Monitor, kind: str, *, life: int = LIFE) -> DesktopTicket:
        """A password that lets one viewer in within *life* seconds; the one before it is worth nothing then.

        :raise Unsupported: when the machine has no screen of this kind.
        """
        self._check(kind)
        password = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
        self._tickets.pop(kind, None)
        expires = now() + timedelta(seconds=life)
        await monitor.execute("set_password", {"protocol": kind, "password": password})
        await monitor.execute("expire_password", {"protocol": kind, "time": f"+{life}"})
        self._tickets[kind] = _Ticket(ends=asyncio.get_running_loop().time() + life)
        certificate = (self._certificates / AUTHORITY).read_text() if kind == VNC else ""
        return DesktopTicket(kind=kind, password=password, certificate=certificate, expires=expires.isoformat())

    async def connect(self, monitor: Monitor, kind: str) -> "ScreenStream":
        """A viewer's connection. VNC has one, and it uses the ticket up, whether its password is right or wrong. A SPICE viewer makes
        several: its first, the main channel, uses the ticket up, and QEMU takes the others only from a viewer who is in.

        :raise Unsupported: when the machine has no screen of this kind.
        :raise Conflict: when there is no ticket, or it was used or is too old.
        """
        self._check(kind)
        ticket = self._tickets.get(kind)
        if ticket is None or (kind == VNC and not self._take(kind)):
            raise self._without(kind)
        ours, theirs = socket.socketpair()
        try:
            async with monitor.named_fd(theirs.fileno()) as name:
                await monitor.execute("add_client", {"protocol": kind, "fdname": name})
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if kind == SPICE:
            return ScreenStream(reader, writer, gate=self._spice_gate)
        return ScreenStream(reader, writer, ended=lambda: self._retire(monitor, ticket))

    def _check(self, kind: str) -> None:
        if kind not in (VNC, SPICE):
            raise Unsupported(f"there is no kind of screen called {kind}", hint=f"one of: {VNC}, {SPICE}", field="kind")
        if self._board.graphics is Graphics.NONE:
            raise Unsupported("this machine has no screen", hint="give it graphics, or use its console", field="kind")
        if kind == SPICE and not self._board.spice:
            raise Unsupported("this machine started without SPICE", hint="restart it with it, or use vnc", field="kind")

    def _take(self, kind: str) -> bool:
        """Use the ticket up; whether there was one."""
        ticket = self._tickets.get(kind)
        if ticket is None or ticket.used or ticket.ends <= asyncio.get_running_loop().time():
            return False
        ticket.used = True
        return True

    def _without(self, kind: str) -> Conflict:
        return Conflict(
            f"there is no unused ticket for this machine's {kind}",
            hint="ask for one; it lets in one viewer within a minute",
        )

    def _spice_gate(self, begin: bytes) -> bool | None:
        """Whether a connection that begins so may go on; ``None`` when that cannot be said yet."""
        if len(begin) < _LINK.size:
            return None if b"REDQ".startswith(begin[:4]) else False
        magic, _, _, _, session, channel = _LINK.unpack_from(begin)
        if magic != b"REDQ":
            return False
        return session != 0 if channel != _MAIN_CHANNEL else session == 0 and self._take(SPICE)

    async def _retire(self, monitor: Monitor, ticket: _Ticket) -> None:
        """Put a password that nobody knows in place of the one of *ticket*, unless a newer ticket did. QEMU's own end of its time
        comes on top."""
        if self._tickets.get(VNC) is ticket:
            password = secrets.token_urlsafe(_LENGTH)[:_LENGTH]
            await monitor.execute("set_password", {"protocol": VNC, "password": password})


class ScreenStream:
    """A :class:`lamella.model.stream.ProcessStream` that is a viewer's connection: ``Stdin`` to the screen, ``Stdout`` from it.

    What a viewer sends is held back until *gate* has seen enough of it to say yes; when it says no, the connection ends.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        gate: Callable[[bytes], bool | None] | None = None,
        ended: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._gate = gate
        self._ended = ended
        self._held = b""
        self._done = False

    async def send(self, frame: ToProcess) -> None:
        """:raise Unavailable: when the screen is gone. :raise Unsupported: for a signal, which a screen has no idea of."""
        match frame:
            case Stdin(data=data):
                await self._write(data)
            case StdinEnd():
                if self._writer.can_write_eof():
                    self._writer.write_eof()
            case Resize():
                pass
            case Signal():
                raise Unsupported("a screen takes no signals", hint="send them to the instance")

    async def receive(self) -> FromProcess | None:
        if self._done:
            return None
        try:
            data = await self._reader.read(LARGEST_DATA)
        except ConnectionError:
            data = b""
        if data:
            return Stdout(data)
        self._done = True
        return Exit(0)

    async def close(self) -> None:
        self._writer.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            with contextlib.suppress(LamellaError):
                await ended()

    async def _write(self, data: bytes) -> None:
        if self._gate is not None:
            self._held += data
            allowed = self._gate(self._held)
            if allowed is None:
                return
            if not allowed:
                self._writer.close()
                raise Unavailable(
                    "this viewer has no ticket", hint="ask for one; it lets in one viewer within a minute"
                )
            data, self._held, self._gate = self._held, b"", None
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise Unavailable("the screen ended the connection") from error
