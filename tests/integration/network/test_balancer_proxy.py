"""haproxy kept by its configuration: there and back, refused and tried again, bounded, and never waited for in the layer's thread."""

import asyncio
import http.client
import http.server
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lamella.host.compute.driver import Home
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.network.balance.desired import Backend, DesiredBalancer, Rule
from lamella.host.network.balance.http import process
from lamella.host.network.balance.http.proxy import Proxy
from lamella.model.balancer import Listener

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


class Fabric:
    """A layer whose namespace is this one, with one thread as the real one has."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def in_layer(self, what: str, function: Callable[[Any], Any]) -> Any:
        async with self._one:
            return await asyncio.to_thread(function, None)


class Slow(http.server.BaseHTTPRequestHandler):
    """``/slow`` is answered when ``go`` is set."""

    go: threading.Event
    came: list[str]

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.came.append(self.path)
            self.go.wait(90)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


class Place:
    """A home, a backend, and a balancer before it at a port that is free."""

    def __init__(self, directory: Path) -> None:
        self.home = Home(path=directory, mark=f"lamella-{secrets.token_hex(4)}")
        self.go = threading.Event()
        self.came: list[str] = []
        handler = type("Named", (Slow,), {"go": self.go, "came": self.came})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]

    def balancer(self, path: str = "") -> DesiredBalancer:
        """Another *path*, another configuration."""
        backends = [
            Backend(
                listener=0,
                instance="",
                name="w",
                address="127.0.0.1",
                port=self.server.server_port,
                rule=Rule(path=each),
            )
            for each in dict.fromkeys(("", path))
        ]
        listeners = [Listener(protocol="http", port=self.port)]
        return DesiredBalancer(
            id="bal_1", name="www", network="", address="127.0.0.1", listeners=listeners, backends=backends, drain=60
        )

    def ask(self, path: str = "/") -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        connection.request("GET", path)
        return connection

    def get(self) -> int:
        connection = self.ask()
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    def running(self) -> list[int]:
        return [one.pid for one in process.running(self.home)]

    def listening(self) -> int:
        """How many sockets take connections: one that is leaving may not have heard of it yet (proc(5), net/tcp; 0A is LISTEN)."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(line[1].endswith(f":{self.port:04X}") and line[3] == "0A" for line in lines)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not await asyncio.to_thread(check):
            await asyncio.sleep(0.05)


async def serve(proxy: Proxy, *balancers: DesiredBalancer) -> dict[str, str]:
    return await proxy.serve(balancers, lambda *_: True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    try:
        yield place
    finally:
        place.go.set()
        place.server.shutdown()
        place.server.server_close()
        Cgroups(ROOT, place.home.mark).remove()


@pytest.fixture
async def proxy(place: Place) -> Any:
    fabric: Any = Fabric()
    proxy = Proxy(place.home, fabric, lambda: None)
    yield proxy
    proxy.close()
    await asyncio.to_thread(proxy.teardown)


async def held(place: Place) -> http.client.HTTPConnection:
    """A request that has come to the backend, and no answer."""
    before = len(place.came)
    connection = await asyncio.to_thread(place.ask, "/slow")
    await until(lambda: len(place.came) > before)
    return connection


def program(monkeypatch: pytest.MonkeyPatch, file: Path, text: str) -> None:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    monkeypatch.setattr(process, "program", lambda: file)


async def test_there_and_back_before_the_first_has_gone(place: Place, proxy: Proxy) -> None:
    for nobody_between in (False, True):
        place.go.clear()
        assert not await serve(proxy, place.balancer())
        connection = await held(place)
        assert not await (serve(proxy) if nobody_between else serve(proxy, place.balancer("/b")))
        assert not await serve(proxy, place.balancer())
        # The first still has its request, and the ports have somebody.
        assert await asyncio.to_thread(place.get) == 200
        place.go.set()
        assert (await asyncio.to_thread(connection.getresponse)).status == 200
        connection.close()
        await until(lambda: len(place.running()) == 1)
        before = place.running()
        assert not await serve(proxy, place.balancer())
        assert place.running() == before and await asyncio.to_thread(place.get) == 200


async def test_of_many_that_finish_the_oldest_end(place: Place, proxy: Proxy) -> None:
    connections: list[http.client.HTTPConnection] = []
    for number in range(7):
        assert not await serve(proxy, place.balancer(f"/{number}"))
        await until(lambda: place.listening() == 1)
        connections.append(await held(place))
    await until(lambda: len(place.running()) == 1 + process.LEAVING)
    limits = process.group(place.home).read_limits()
    assert limits.memory and limits.pids
    place.go.set()
    assert (await asyncio.to_thread(connections[-2].getresponse)).status == 200
    with pytest.raises((OSError, http.client.HTTPException)):
        await asyncio.to_thread(connections[0].getresponse)
    for connection in connections:
        connection.close()


async def test_what_does_not_start_stays_said_and_another_is_tried_at_once(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    program(monkeypatch, tmp_path / "haproxy", f"echo once >> {begun}; echo no such luck >&2; exit 1")
    # Busy as the machine may be, the next try is not yet due.
    monkeypatch.setattr("lamella.host.network.balance.http.proxy._FIRST_PAUSE", 600.0)
    for _ in range(2):
        assert "no such luck" in (await serve(proxy, place.balancer()))["bal_1"]
    assert begun.read_text() == "once\n"

    def full(*_: object) -> list[str]:
        raise OSError("no space left")

    monkeypatch.setattr(process, "prepare", full)
    assert "no space left" in (await serve(proxy, place.balancer("/c")))["bal_1"]
    monkeypatch.undo()
    assert not await serve(proxy, place.balancer("/b"))
    assert not await serve(proxy, place.balancer())
    assert await asyncio.to_thread(place.get) == 200


async def test_the_layers_thread_does_not_wait_for_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = process.program()
    assert real is not None
    begun, go = tmp_path / "begun", tmp_path / "go"
    wait = f"touch {begun}; until [ -e {go} ]; do sleep 0.1; done"
    program(monkeypatch, tmp_path / "haproxy", f'{wait}; exec {real} "$@"')
    fabric: Any = Fabric()
    proxy = Proxy(place.home, fabric, lambda: None)
    try:
        serving = asyncio.create_task(serve(proxy, place.balancer()))
        await until(begun.exists)
        async with asyncio.timeout(90):
            assert await fabric.in_layer("do something else", lambda _: "done") == "done"
        assert not serving.done()
        go.touch()
        assert not await serving and await asyncio.to_thread(place.get) == 200
    finally:
        go.touch()
        proxy.close()
        await asyncio.to_thread(proxy.teardown)


async def test_a_host_that_begins_with_a_dash_stops_nobody(place: Place, proxy: Proxy) -> None:
    balancer = place.balancer()
    odd = [*balancer.backends, replace(balancer.backends[0], rule=Rule(host="-f"))]
    assert not await serve(proxy, replace(balancer, backends=odd))
    assert await asyncio.to_thread(place.get) == 200
