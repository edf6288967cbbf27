"""Balancers that read HTTP against real requests: hosts, paths, TLS; haproxy is kept, replaced without a request lost, and ended."""

import asyncio
import http.client
import http.server
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from network_world import NETWORK, World, port
from test_balancer_packets import VIP, Heard, asked, desired

from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.network.balance.desired import Backend, DesiredBalancer, Rule
from lamella.host.network.balance.http import process
from lamella.host.network.bridge import BridgeDriver
from lamella.model.balancer import Check, Listener
from lamella.model.ids import new_id
from lamella.model.instance import Publish

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
HTTP, HTTPS = Listener(protocol="http", port=80), Listener(protocol="https", port=443)


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""

    def do_GET(self) -> None:
        who = ",".join(self.headers.get_all("X-Forwarded-For", []) + self.headers.get_all("Forwarded", []))
        said = f"{self.name} {self.path} {who} {self.headers['X-Forwarded-Proto']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None: ...


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A check says nothing and leaves."""


class Servers:
    """``iN`` at 10.83.0.N, each with a server at 8080 that says its name."""

    def __init__(self, world: World, *numbers: int) -> None:
        self.servers: list[Server] = []
        ports = {number: port(number) for number in (*numbers, 5)}

        async def use(driver: BridgeDriver) -> None:
            for number, one in ports.items():
                await driver.attach_namespace(one, world.path(f"i{number}"))

        for number in ports:
            world.add(f"i{number}", loopback=False)
        world.run(use)
        for number in numbers:
            made = type("Named", (Answer,), {"name": f"i{number}"})
            server = world.inside(f"i{number}", lambda made=made: Server(("", 8080), made))
            self.servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


def backends(rules: dict[int, Rule], listeners: int = 1) -> list[Backend]:
    return [
        Backend(
            listener=place,
            instance=new_id("instance"),
            name=f"i{number}",
            address=f"10.83.0.{number}",
            port=8080,
            rule=rule,
        )
        for place in range(listeners)
        for number, rule in rules.items()
    ]


def get(
    world: World,
    client: str,
    path: str = "/",
    host: str = "",
    address: str = VIP,
    number: int = 80,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, str]:
    made = world.endpoint(client)
    made.settimeout(20)
    made.connect((address, number))
    wire: socket.socket = tls.wrap_socket(made, server_hostname=host) if tls is not None else made
    connection = http.client.HTTPConnection(host or address, number)
    connection.sock = wire
    forged = {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1"}
    try:
        connection.request("GET", path, headers={"Host": host or address, **forged})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        wire.close()


def told(world: World, *names: str, **more: Any) -> str:
    return get(world, *names, **more)[1].split()[0]


def serves(world: World) -> bool:
    try:
        return get(world, "i5")[0] == 200
    except OSError:
        return False


def certificate(directory: Path) -> Path:
    key, made, both = directory / "key.pem", directory / "cert.pem", directory / "both.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ),
            *(
                "-subj",
                "/CN=www.example",
                "-addext",
                "subjectAltName=DNS:www.example",
                "-keyout",
                str(key),
                "-out",
                str(made),
            ),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    both.write_text(made.read_text() + key.read_text())
    both.chmod(0o600)
    return both


def serving(world: World) -> list[int]:
    return [one.pid for one in process.running(world.home)]


async def until(check: Any) -> None:
    async with asyncio.timeout(90):
        while not await asyncio.to_thread(check):
            await asyncio.sleep(0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    try:
        yield world
    finally:
        world.close()
        Cgroups(ROOT, world.home.mark).remove()


def web(**more: Any) -> DesiredBalancer:
    return replace(desired(listeners=(HTTP,)), **more)


def test_requests_go_where_their_host_and_path_say(world: World) -> None:
    servers = Servers(world, 2, 3, 4)
    rules = {2: Rule(), 3: Rule(path="/api"), 4: Rule(host="www.example", path="/api")}
    balancer = web(backends=backends(rules), publish=[Publish(host_port=8080, port=80)])

    elsewhere = replace(NETWORK, id=new_id("network"), name="back", subnet="10.84.0.0/24", gateway="10.84.0.1")
    stranger = replace(port(9), network=elsewhere.id, address="10.84.0.9/24")

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(elsewhere)
        await driver.attach_namespace(stranger, world.add("i9", loopback=False))
        await asked(driver, balancer, i2="up", i3="up", i4="up")
        try:
            await asyncio.to_thread(check)
        finally:
            await driver.teardown()

    def check() -> None:
        assert told(world, "i5", "/") == "i2" and told(world, "i5", "/apix") == "i2"
        assert told(world, "i5", "/api") == "i3" and told(world, "i5", "/api/v1?x=/") == "i3"
        assert told(world, "i5", "/api/v1", "WWW.example") == "i4" and told(world, "i5", "/", "www.example") == "i2"
        # Who asked is told to the backend, from inside and from outside.
        assert get(world, "i5") == (200, "i2 / 10.83.0.5 http")
        said = get(world, "internet", address="203.0.113.1", number=8080)
        assert said == (200, "i2 / 203.0.113.9 http")
        # Networks do not reach each other, by a balancer neither.
        with pytest.raises(OSError, match="timed out"):
            world.ask("i9", VIP, 80)

    try:
        world.run(use)
        assert serving(world) == []
    finally:
        servers.close()


def test_tls_ends_at_the_balancer(world: World, tmp_path: Path) -> None:
    servers = Servers(world, 2)
    file = certificate(tmp_path)
    balancer = replace(
        desired(listeners=(HTTPS,)), backends=backends({2: Rule()}), certificate=str(file), id=new_id("balancer")
    )
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    async def use(driver: BridgeDriver) -> None:
        try:
            await asked(driver, balancer, i2="up")
            said = await asyncio.to_thread(get, world, "i5", "/", "www.example", VIP, 443, context)
            assert said == (200, "i2 / 10.83.0.5 https")
            # Another one's missing certificate is said, and takes nothing from this one.
            other = replace(
                balancer, id=new_id("balancer"), name="other", address="10.83.0.201", certificate="/nowhere.pem"
            )
            heard = Heard()
            await driver.balance([balancer, other], heard)
            async with asyncio.timeout(90):
                while not any(r.id == other.id and "/nowhere.pem" in r.conditions[0].message for r in heard.reports):
                    await asyncio.sleep(0.02)
            said = await asyncio.to_thread(get, world, "i5", "/", "www.example", VIP, 443, context)
            assert said[0] == 200
        finally:
            await driver.teardown()

    try:
        world.run(use)
    finally:
        servers.close()


def test_a_change_loses_no_request_and_a_killed_haproxy_comes_back(world: World) -> None:
    servers = Servers(world, 2, 3)
    balancer = web(backends=backends({2: Rule(), 3: Rule()}))
    drained = replace(balancer, backends=[replace(one, draining=one.name == "i2") for one in balancer.backends])
    failures: list[object] = []
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask_on() -> None:
        while not over.is_set():
            try:
                seen[told(world, "i5")] += 1
            except Exception as error:
                failures.append(error)

    async def use(driver: BridgeDriver) -> None:
        asking = threading.Thread(target=ask_on)
        try:
            await asked(driver, balancer, i2="up", i3="up")
            await until(lambda: serves(world))
            asking.start()
            for one, state in ((drained, "draining"), (balancer, "up"), (drained, "draining")):
                await asked(driver, one, i2=state, i3="up")
                await until(lambda: len(serving(world)) == 1)
            over.set()
            await asyncio.to_thread(asking.join, 30)
            assert not failures and seen["i3"]
            assert {await asyncio.to_thread(told, world, "i5") for _ in range(4)} == {"i3"}
            before = serving(world)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: serves(world))
            assert await asyncio.to_thread(told, world, "i5") == "i3" and not set(before) & set(serving(world))
        finally:
            over.set()
            await driver.balance([], lambda _: None)
            await until(lambda: not serving(world))
            await driver.teardown()

    try:
        world.run(use)
    finally:
        servers.close()


def test_the_next_daemon_finds_it(world: World) -> None:
    servers = Servers(world, 2)
    balancer = web(backends=backends({2: Rule()}), check=Check(interval=0.3, timeout=10))
    try:
        world.run(lambda driver: asked(driver, balancer, i2="up"))
        before = serving(world)
        assert len(before) == 1 and told(world, "i5") == "i2"

        async def again(driver: BridgeDriver) -> None:
            try:
                await asked(driver, balancer, i2="up")
                deadline = time.monotonic() + 90
                while serving(world) != before:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
                # Nobody is left: that is said, too.
                heard = await asked(driver, replace(balancer, backends=[]))
                await until(lambda: get(world, "i5")[0] == 503)
                await until(lambda: heard.reports and not heard.reports[-1].conditions[0].status)
            finally:
                await driver.teardown()

        world.run(again)
        assert serving(world) == [] and NETWORK.name == "default"
    finally:
        servers.close()
