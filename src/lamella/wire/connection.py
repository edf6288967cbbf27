"""A TLS connection to a party whose certificate names the one that was meant."""

import asyncio
import socket
import ssl
from urllib.parse import urlsplit

from lamella.model.errors import Invalid, LamellaError, Unauthenticated, Unavailable
from lamella.wire.identity import Peer, peer_of_certificate
from lamella.wire.listener import keep_alive

CONNECT_SECONDS = 5.0
PIECE = 64 << 10


class Party:
    """Whom we call: an ``https://host:port`` *address*, and the role and name that its certificate must have.

    An empty *name* takes any of that role. The host in *address* is a way, not an identity, so the certificate need not carry it.
    """

    def __init__(self, address: str, context: ssl.SSLContext, *, role: str, name: str = "") -> None:
        parts = urlsplit(address)
        if parts.scheme != "https" or not parts.hostname or not parts.port:
            raise Invalid(
                f"{address!r} is no address of a party", hint="write it like https://10.0.0.2:7443", field="address"
            )
        self.host, self.port = parts.hostname, parts.port
        self.authority = parts.netloc
        self._context = context
        self._role = role
        self._name = name

    def __str__(self) -> str:
        return f"{self._role} {self._name} at {self.authority}" if self._name else f"{self._role} at {self.authority}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """:raise Unavailable: when nobody answers there. :raise Unauthenticated: when it is somebody else, or does not trust us."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self.host, self.port, ssl=self._context, server_hostname=self.host, limit=PIECE
                )
        except (OSError, TimeoutError) as error:
            raise self.failure(error) from error
        peer = peer_of_certificate(writer.get_extra_info("ssl_object").getpeercert())
        if not self._meant(peer):
            writer.transport.abort()
            found = f"{peer.role} {peer.name}" if peer else "somebody without a name"
            raise Unauthenticated(f"{self} was called, and {found} answered", hint="check the address of that host")
        keep_alive(writer.transport)
        return reader, writer

    def failure(self, error: BaseException | None) -> LamellaError:
        """What an error of the transport means to a caller."""
        if isinstance(error, ssl.SSLError):
            reason = error.reason or str(error)
            return Unauthenticated(
                f"{self} and we do not trust each other: {reason}", hint="issue certificates of the same layer"
            )
        if isinstance(error, socket.gaierror):
            return Unavailable(f"{self} is not found: {error.strerror}", hint="check its address")
        detail = "no answer in time" if isinstance(error, TimeoutError) else (str(error) if error else "it hung up")
        return Unavailable(f"{self} cannot be reached: {detail}", hint="check that its daemon runs, and the way to it")

    def _meant(self, peer: Peer | None) -> bool:
        return peer is not None and peer.role == self._role and self._name in ("", peer.name)
