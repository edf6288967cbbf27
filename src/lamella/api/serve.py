"""The API on its sockets: a Unix socket for this machine, TCP with mutual TLS for others."""

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

from litestar import Litestar

from lamella.api.identity import GROUP
from lamella.model.errors import Invalid
from lamella.wire import listener


async def serve(
    app: Litestar,
    *,
    uds: Path | None = None,
    tcp: tuple[str, int] | None = None,
    tls: ssl.SSLContext | None = None,
    group: str = GROUP,
    ready: asyncio.Event | None = None,
    deadline: int = 5,
) -> None:
    """Serve *app* on *uds*, on *tcp*, or both, until cancelled.

    On cancellation nothing new is accepted, open streams are ended, and what is under way has *deadline* seconds. *ready* is
    set when all sockets accept connections.

    :raise Conflict: when somebody listens there already.
    :raise Invalid: when *tcp* is asked for without *tls*: away from this machine, nothing is spoken in clear.
    """
    if tcp is not None and (tls is None or tls.verify_mode is not ssl.CERT_REQUIRED):
        raise Invalid("the API is not served over TCP without mutual TLS", hint="give it a certificate bundle")
    with contextlib.ExitStack() as held:
        doors: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        if uds is not None:
            doors.append((held.enter_context(listener.bind_unix(uds, group=group)), None))
            held.callback(_remove, uds, uds.stat().st_ino)
        if tcp is not None:
            doors.append((held.enter_context(listener.bind_tcp(*tcp)), tls))
        started = [asyncio.Event() for _ in doors]
        async with asyncio.TaskGroup() as servers:
            for (sock, context), event in zip(doors, started, strict=True):
                servers.create_task(listener.serve(app, sock, tls=context, ready=event, deadline=deadline))
            for event in started:
                await event.wait()
            if ready is not None:
                ready.set()


def _remove(uds: Path, inode: int) -> None:
    """Remove our socket's file, unless the next daemon has put its own there already."""
    with contextlib.suppress(FileNotFoundError):
        if uds.stat().st_ino == inode:
            uds.unlink()
