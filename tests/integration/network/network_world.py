"""A small world of network namespaces, away from the machine's own.

    internet (203.0.113.9) ---- host (203.0.113.1) ---- [uplink, made by the driver] ---- layer ---- instances

``World.run`` drives the driver from a thread inside *host*, so whatever it takes for the host is that namespace.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from lamella.host.compute.driver import Home
from lamella.host.linux.syscalls import CLONE_NEWNET, setns
from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.routers.spaces import Spaces
from lamella.model.ids import new_id
from lamella.model.instance import Publish

T = TypeVar("T")
NETWORK = DesiredNetwork(id=new_id("network"), name="default", subnet="10.83.0.0/16", gateway="10.83.0.1", mtu=1500)


def command(*words: str) -> str:
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=90)
    return done.stdout


class World:
    def __init__(self, directory: Path) -> None:
        self.home = Home(path=directory, mark=f"lamella-{secrets.token_hex(4)}")
        self.namespaces: list[str] = []
        self.sockets: list[socket.socket] = []
        for name in ("host", "layer", "internet"):
            self.add(name)
        host, internet = self.full("host"), self.full("internet")
        command("ip", "-n", host, "link", "add", "a0", "type", "veth", "peer", "name", "c0", "netns", internet)
        command("ip", "-n", host, "addr", "add", "203.0.113.1/24", "dev", "a0")
        command("ip", "-n", internet, "addr", "add", "203.0.113.9/24", "dev", "c0")
        command("ip", "-n", host, "link", "set", "a0", "up")
        command("ip", "-n", internet, "link", "set", "c0", "up")
        command("ip", "-n", host, "route", "add", "default", "via", "203.0.113.9")

    def full(self, name: str) -> str:
        return f"{self.home.mark}-{name}"

    def path(self, name: str) -> Path:
        return Path("/run/netns") / self.full(name)

    def add(self, name: str, *, loopback: bool = True) -> Path:
        command("ip", "netns", "add", self.full(name))
        self.namespaces.append(name)
        if loopback:
            command("ip", "-n", self.full(name), "link", "set", "lo", "up")
        return self.path(name)

    def inside(self, name: str | Path, function: Callable[[], T]) -> T:
        """Run *function* in a thread of its own inside a namespace."""
        results: list[T] = []
        failures: list[BaseException] = []

        def body() -> None:
            try:
                descriptor = os.open(self.path(name) if isinstance(name, str) else name, os.O_RDONLY)
                try:
                    setns(descriptor, CLONE_NEWNET)
                finally:
                    os.close(descriptor)
                results.append(function())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def run(self, use: Callable[[BridgeDriver], Coroutine[Any, Any, T]], *, fresh: bool = True) -> T:
        """Open a driver (*fresh*: ensure the network too), use it, close it: one life of a daemon."""

        async def life() -> T:
            driver = BridgeDriver(self.home, self.path("layer"))
            await driver.open()
            try:
                if fresh:
                    await driver.ensure_network(NETWORK)
                return await use(driver)
            finally:
                await driver.close()

        return self.inside("host", lambda: asyncio.run(life()))

    def in_(self, name: str, *words: str) -> str:
        return command("ip", "netns", "exec", self.full(name), *words)

    def endpoint(self, name: str | Path, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        made = self.inside(name, lambda: socket.socket(family, kind))
        made.settimeout(10.0)
        self.sockets.append(made)
        return made

    def serve(self, name: str | Path, port: int, word: str, kind: int = socket.SOCK_STREAM) -> None:
        """Answer everybody at *port* with *word* and the address that they seem to have."""
        server = self.endpoint(name, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", port))
        server.settimeout(None)
        if kind == socket.SOCK_STREAM:
            server.listen()

        def body() -> None:
            while True:
                try:
                    if kind == socket.SOCK_STREAM:
                        peer, (address, _) = server.accept()
                        with peer:
                            peer.sendall(f"{word} {address}".encode())
                    else:
                        _, caller = server.recvfrom(100)
                        server.sendto(f"{word} {caller[0]}".encode(), caller)
                except (OSError, TypeError):  # a socket that is shut down has no caller
                    return

        threading.Thread(target=body, daemon=True).start()

    def ask(self, name: str | Path, address: str, port: int, kind: int = socket.SOCK_STREAM, bind: str = "") -> str:
        """What a server there answers. :raise OSError: when nobody does within three seconds: a lost packet is sent again after one."""
        client = self.endpoint(name, kind)
        if bind:
            client.bind((bind, 0))
        client.setblocking(False)
        failed = client.connect_ex((address, port))
        if failed == errno.EINPROGRESS:
            _wait(client, select.POLLOUT)
            failed = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        if kind == socket.SOCK_DGRAM:
            client.send(b"?")
        _wait(client, select.POLLIN)
        return client.recv(100).decode()

    def pings(self, name: str, address: str, *, patience: float = 90) -> bool:
        """Whether an echo comes back, tried again until *patience* ends: a first packet may be lost."""
        deadline = time.monotonic() + patience
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                return "1 received" in self.in_(name, "ping", "-c1", "-W1", address)
            if time.monotonic() >= deadline:
                return False

    def links(self, name: str) -> set[str]:
        return self.inside(name, lambda: {link for _, link in socket.if_nameindex()})

    def close(self) -> None:
        for made in self.sockets:
            # Wake the servers that wait in accept or recvfrom.
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()
        routers = Spaces.of(self.home)
        for router in routers.ids():
            routers.remove(router)
        for name in self.namespaces:
            command("ip", "netns", "del", self.full(name))


def _wait(client: socket.socket, event: int) -> None:
    """For three seconds in which this machine runs: where it stands still meanwhile, nobody could have answered.

    :raise TimeoutError: when they are over.
    """
    poll = select.poll()
    poll.register(client, event)
    for _ in range(30):
        if poll.poll(100):
            return
    raise TimeoutError("timed out")


def port(number: int, *publish: Publish) -> DesiredPort:
    return DesiredPort(
        id=new_id("port"),
        network=NETWORK.id,
        address=f"10.83.0.{number}/16",
        mac=f"02:00:0a:53:00:{number:02x}",
        publish=list(publish),
    )
