"""uvicorn inside a loop that is already running, telling the application who the peer is.

Every scope's ``state`` carries ``peer`` (a :class:`Peer` or ``None``) and ``closing`` (an event that is set when the server
stops, so that open streams end); a WebSocket's also ``gone``, a function that says whether its client hung up.
"""

import asyncio
import contextlib
import errno
import grp
import os
import select
import socket
import ssl
import struct
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from wsproto import events

from lamella.model.errors import Conflict, Invalid
from lamella.wire.identity import Peer, peer_of_certificate
from lamella.wire.problem import MEDIA_TYPE, problem_of

LARGEST_MESSAGE = 4 << 20
_LONGEST_SOCKET_PATH = 107


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Who is at the other end: by SO_PEERCRED (unix(7)) or by the certificate that TLS has verified."""
    tls = transport.get_extra_info("ssl_object")
    if tls is not None:
        return peer_of_certificate(tls.getpeercert())
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    _, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid=uid, gid=gid)


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Let the kernel notice within half a minute that the machine at the other end is gone (tcp(7))."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(level, option, value)


class PeerHttp(HttpToolsProtocol):
    """HTTP that puts the peer into the scope."""

    peer: Peer | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        keep_alive(transport)
        self.peer = peer_of(transport)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP at all gets a problem too, and the connection is closed."""
        body = msgspec.json.encode(problem_of(Invalid("this is no HTTP request", hint="speak HTTP/1.1")))
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (MEDIA_TYPE.encode(), len(body)) + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["state"]["peer"] = self.peer


class PeerWebSocket(WSProtocol):
    """WebSocket that puts the peer into the scope. The task that reads the scope starts only after this returns."""

    def handle_connect(self, event: events.Request) -> None:
        super().handle_connect(event)
        state = cast("dict[str, Any]", self.scope)["state"]
        state["peer"] = peer_of(self.transport)
        state["gone"] = self._gone

    def _gone(self) -> bool:
        """Whether the client hung up, or the server stops: seen on the socket, so that it is true while reading is paused."""
        if self.transport.is_closing() or self.app_state["closing"].is_set():
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))


class _Server(uvicorn.Server):
    """One server on one bound socket, without signal handlers and without a tick ten times a second."""

    def __init__(self, config: uvicorn.Config, ready: asyncio.Event | None) -> None:
        super().__init__(config)
        self._ready = ready
        self._stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        assert sockets is not None

        def protocol() -> asyncio.Protocol:
            return PeerHttp(
                config=self.config,
                server_state=self.server_state,
                app_state={"closing": self._stop, "peer": None},
                _loop=loop,
            )

        self.servers = []
        for sock in sockets:
            if sock.family == socket.AF_UNIX:
                server = await loop.create_unix_server(protocol, sock=sock, backlog=1024)
            else:
                server = await loop.create_server(protocol, sock=sock, ssl=self.config.ssl, backlog=1024)
            self.servers.append(server)
        self.started = True
        await self.on_tick(0)
        if self._ready is not None:
            self._ready.set()

    async def main_loop(self) -> None:
        while not self._stop.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stop.wait()

    def stop(self) -> None:
        self.should_exit = True
        self._stop.set()


async def serve(
    app: Any,
    sock: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    ready: asyncio.Event | None = None,
    deadline: int = 5,
) -> None:
    """Serve the ASGI *app* on the bound *sock* until cancelled; then stop, giving what is under way *deadline* seconds.

    *ready* is set when connections are accepted. A Unix socket's file is removed at the end.
    """
    config = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        loop="none",
        http=PeerHttp,
        ws=PeerWebSocket,
        ws_max_size=LARGEST_MESSAGE,
        # A peer that does not read (a terminal held with Ctrl-S) cannot answer a ping: back-pressure is not death.
        ws_ping_interval=None,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=deadline,
        ssl_context_factory=(lambda _config, _default: tls) if tls is not None else None,
    )
    server = _Server(config, ready)
    running = asyncio.create_task(server.serve([sock]), name="http-server")
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        server.stop()
        await running
        raise
    finally:
        sock.close()


def bind_tcp(host: str, port: int) -> socket.socket:
    """A TCP socket bound to *host*:*port* (0: the kernel chooses), not yet listening.

    :raise Conflict: when the address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise Conflict(f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another address") from error
    sock.setblocking(False)
    return sock


def bind_unix(path: Path, *, group: str = "lamella") -> socket.socket:
    """A Unix socket bound to *path*: mode 0660 for *group* where that exists and we may give files to it, else 0600.

    A file that nobody listens on is replaced. Paths longer than ``sun_path`` are reached through /proc/self/fd.

    :raise Conflict: when somebody listens there.
    :raise Invalid: when the last part of the path alone is too long, or *path* is something else than a socket.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with _short(path) as short:
        try:
            _remove_stale(path, short)
            sock.bind(short)
        except BaseException:
            sock.close()
            raise
        # Nobody can connect before listen(): the mode is right before the first connection.
        path.chmod(0o600)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
            path.chmod(0o660)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def _short(path: Path) -> Generator[str, None, None]:
    """A name for *path* that fits into ``sun_path``."""
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        yield str(path)
        return
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{parent}/{path.name}"
        if len(os.fsencode(short)) > _LONGEST_SOCKET_PATH:
            raise Invalid(f"the name {path.name!r} is too long for a socket", hint="use at most 80 bytes")
        yield short
    finally:
        os.close(parent)


def _remove_stale(path: Path, short: str) -> None:
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise Invalid(f"{path} is there and is not a socket", hint="move it away")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETIMEDOUT):
                raise
    raise Conflict(f"somebody already listens on {path}", hint="stop that daemon first, or use another LAMELLA_HOME")
