"""The API on its sockets: a Unix socket for this machine, TCP with mutual TLS for others."""

import asyncio
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
    sockets = [
        *([(listener.bind_unix(uds, group=group), None)] if uds else []),
        *([(listener.bind_tcp(*tcp), tls)] if tcp else []),
    ]
    started = [asyncio.Event() for _ in sockets]
    try:
        async with asyncio.TaskGroup() as servers:
            for (sock, context), event in zip(sockets, started, strict=True):
                servers.create_task(listener.serve(app, sock, tls=context, ready=event, deadline=deadline))
            for event in started:
                await event.wait()
            if ready is not None:
                ready.set()
    finally:
        if uds is not None:
            await asyncio.to_thread(uds.unlink, missing_ok=True)
