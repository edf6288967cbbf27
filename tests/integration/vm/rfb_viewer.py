"""A viewer of the RFB protocol (rfbproto.rst) with VeNCrypt X509Vnc over a ProcessStream, no further than one picture."""

import asyncio
import ssl
import struct

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from lamella.model.board import DesktopTicket
from lamella.model.stream import ProcessStream, Stdin, Stdout

VENCRYPT, X509_VNC = 19, 261
PATIENCE = 30  # seconds that the server may say nothing


class Denied(Exception):
    """The server said why."""


class RfbViewer:
    def __init__(self, stream: ProcessStream) -> None:
        self._stream = stream
        self._raw = b""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None

    async def open(self, ticket: DesktopTicket, *, password: str | None = None) -> tuple[int, int, str]:
        """Get in; returns the width, height and name of the desktop.

        :raise Denied: when the password is refused.
        :raise ssl.SSLError: when the certificate is not one of the ticket's authority.
        """
        assert await self._read(12) == b"RFB 003.008\n"
        await self._write(b"RFB 003.008\n")
        (count,) = await self._read(1)
        assert list(await self._read(count)) == [VENCRYPT]
        await self._write(bytes([VENCRYPT]))
        assert await self._read(2) == b"\0\2"
        await self._write(b"\0\2")
        assert await self._read(1) == b"\0"
        (count,) = await self._read(1)
        assert struct.unpack(f">{count}I", await self._read(4 * count)) == (X509_VNC,)
        await self._write(struct.pack(">I", X509_VNC))
        assert await self._read(1) == b"\1"
        await self._start_tls(ticket.certificate)
        challenge = await self._read(16)
        await self._write(_answer(challenge, ticket.password if password is None else password))
        (result,) = struct.unpack(">I", await self._read(4))
        if result:
            (length,) = struct.unpack(">I", await self._read(4))
            raise Denied((await self._read(length)).decode())
        await self._write(b"\1")  # others may stay
        width, height = struct.unpack(">HH", await self._read(4))
        await self._read(16)
        (length,) = struct.unpack(">I", await self._read(4))
        return width, height, (await self._read(length)).decode()

    async def picture(self, width: int, height: int) -> dict[tuple[int, int], bytes]:
        """Four bytes a pixel: the whole desktop, by row and column of each rectangle's first pixel."""
        await self._write(struct.pack(">BxHi", 2, 1, 0))  # raw alone
        await self._write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        covered = 0
        found: dict[tuple[int, int], bytes] = {}
        while covered < width * height:
            kind, rectangles = struct.unpack(">BxH", await self._read(4))
            assert kind == 0
            for _ in range(rectangles):
                x, y, w, h, encoding = struct.unpack(">HHHHi", await self._read(12))
                assert encoding == 0
                found[y, x] = await self._read(4 * w * h)
                covered += w * h
        return found

    @property
    def tls_version(self) -> str | None:
        return None if self._tls is None else self._tls.version()

    async def _start_tls(self, authority: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=authority)
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._incoming.write(self._raw)
        self._raw = b""
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                self._incoming.write(await self._receive())
        await self._flush()
        self._tls = tls

    async def _read(self, size: int) -> bytes:
        if self._tls is None:
            while len(self._raw) < size:
                self._raw += await self._receive()
            data, self._raw = self._raw[:size], self._raw[size:]
            return data
        data = b""
        while len(data) < size:
            try:
                part = self._tls.read(size - len(data))
            except ssl.SSLWantReadError:
                self._incoming.write(await self._receive())
                continue
            if not part:
                raise EOFError("the server ended TLS")
            data += part
        return data

    async def _write(self, data: bytes) -> None:
        if self._tls is None:
            await self._stream.send(Stdin(data))
        else:
            self._tls.write(data)
            await self._flush()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._stream.send(Stdin(data))

    async def _receive(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            frame = await self._stream.receive()
        if not isinstance(frame, Stdout):
            raise EOFError("the server ended the connection")
        return frame.data


def _answer(challenge: bytes, password: str) -> bytes:
    """The challenge in DES with the password, its bits the other way round in each byte (three times the same key is DES)."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode().ljust(8, b"\0")[:8])
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()
