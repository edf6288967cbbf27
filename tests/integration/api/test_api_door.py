"""Who gets in, how the sockets are made, and how they go."""

import asyncio
import grp
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_layer import FakeLayer
from litestar import Litestar

from lamella.api.app import create_app
from lamella.api.identity import Identity
from lamella.api.serve import serve
from lamella.model.errors import Conflict, Invalid
from lamella.wire.certificates import Authority


def over(uds: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(uds)), base_url="http://lamella", timeout=90)


async def start(app: Litestar, **where: object) -> "asyncio.Task[None]":
    ready = asyncio.Event()
    server = asyncio.create_task(serve(app, ready=ready, deadline=1, **where))  # type: ignore[arg-type]
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({server, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if server.done():
        server.result()
    return server


async def stop(server: "asyncio.Task[None]") -> None:
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)


ASK_AS_NOBODY = """
import http.client, os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534)
def connected():
    connection = http.client.HTTPConnection("lamella")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(sys.argv[1])
    return connection
for path in ("/v1", "/v1/projects/default/instances", "/v1/projects/default/instances/web/exec"):
    connection = connected()
    connection.request("GET", path)
    print(connection.getresponse().status)
sock = connected().sock
sock.sendall(b"GET /v1/projects/default/instances/web/attach HTTP/1.1\\r\\nhost: x\\r\\nupgrade: websocket\\r\\n"
    b"connection: upgrade\\r\\nsec-websocket-version: 13\\r\\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n")
text = b""
sock.settimeout(0.5)
try:
    while b'"code":"forbidden"' not in text:
        text += sock.recv(65536)
    print("forbidden")
except TimeoutError:
    print("let in")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that every user can reach, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="lamella-door-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def ask_as_nobody(uds: Path, group: int) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-c", ASK_AS_NOBODY, str(uds), str(group), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().split("\n")[:-1]


@pytest.mark.root
async def test_another_user_may_know_the_layer_and_nothing_else(open_folder: Path, layer: FakeLayer) -> None:
    uds = open_folder / "s"
    server = await start(create_app(layer), uds=uds)
    uds.chmod(0o666)
    assert await ask_as_nobody(uds, 65534) == ["200", "403", "403", "forbidden"]
    await stop(server)


@pytest.mark.root
async def test_a_member_of_the_group_administers(open_folder: Path, layer: FakeLayer) -> None:
    uds = open_folder / "s"
    daemon = grp.getgrnam("daemon").gr_gid
    server = await start(create_app(layer, identity=Identity(group="daemon")), uds=uds, group="daemon")
    assert (stat.S_IMODE(uds.stat().st_mode), uds.stat().st_gid) == (0o660, daemon)
    assert await ask_as_nobody(uds, daemon) == ["200", "200", "426", "let in"]
    await stop(server)


async def test_a_connection_that_proves_nothing_is_refused() -> None:
    transport = httpx.ASGITransport(create_app(FakeLayer()))
    async with httpx.AsyncClient(transport=transport, base_url="http://lamella") as client:
        for path in ("/v1", "/v1/projects/default/instances", "/nothing"):
            answer = await client.get(path, headers={"authorization": "root", "x-forwarded-for": "127.0.0.1"})
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_the_socket_is_made_and_removed(tmp_path: Path, layer: FakeLayer) -> None:
    uds = tmp_path / "made" / "api.sock"
    server = await start(create_app(layer), uds=uds, group="no such group")
    assert stat.S_IMODE(uds.stat().st_mode) == 0o600
    async with over(uds) as client:
        assert (await client.get("/v1")).status_code == 200
    await stop(server)
    assert not uds.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path, layer: FakeLayer) -> None:
    uds = tmp_path / "api.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(uds))
    stale.close()
    server = await start(create_app(layer), uds=uds)
    with pytest.raises(Conflict, match="already listens"):
        await serve(create_app(layer), uds=uds)
    async with over(uds) as client:
        assert (await client.get("/v1")).status_code == 200
    await stop(server)


async def test_what_cannot_be_served_whole_leaves_nothing(tmp_path: Path, layer: FakeLayer) -> None:
    bundle = Authority.open(tmp_path / "authority").issue("control", "main")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Conflict, match="cannot listen"):
            where = {"uds": tmp_path / "api.sock", "tcp": taken.getsockname()}
            await serve(create_app(layer), tls=bundle.server_context(), **where)
    assert not (tmp_path / "api.sock").exists()


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path, layer: FakeLayer) -> None:
    uds = tmp_path / "api.sock"
    uds.write_text("precious")
    with pytest.raises(Invalid, match="not a socket"):
        await serve(create_app(layer), uds=uds)
    assert uds.read_text() == "precious"


async def test_a_long_path_is_reached(tmp_path: Path, layer: FakeLayer) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    server = await start(create_app(layer), uds=folder / "api.sock")
    descriptor = os.open(folder, os.O_PATH)
    async with over(Path(f"/proc/self/fd/{descriptor}/api.sock")) as client:
        assert (await client.get("/v1")).status_code == 200
    os.close(descriptor)
    await stop(server)
    assert not (folder / "api.sock").exists()


async def test_stopping_ends_what_is_open(tmp_path: Path, layer: FakeLayer) -> None:
    uds = tmp_path / "api.sock"
    server = await start(create_app(layer), uds=uds)
    async with over(uds) as client:
        url = "/v1/projects/default/instances?watch=true"
        async with client.stream("GET", url) as watch, asyncio.timeout(90):
            await stop(server)
            assert [line async for line in watch.aiter_lines()] == []


async def test_tcp_needs_a_certificate_and_a_host_is_no_person(tmp_path: Path, layer: FakeLayer) -> None:
    authority = Authority.open(tmp_path / "authority")
    with pytest.raises(Invalid, match="mutual TLS"):
        await serve(create_app(layer), tcp=("127.0.0.1", 0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = await start(
        create_app(layer), tcp=("127.0.0.1", port), tls=authority.issue("control", "main").server_context()
    )
    context = authority.issue("host", "alpha").client_context()
    async with httpx.AsyncClient(verify=context, base_url=f"https://127.0.0.1:{port}") as client:
        assert (await client.get("/v1")).json()["you"] == "host:alpha"
        refused = await client.get("/v1/projects/default/instances")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    await stop(server)
