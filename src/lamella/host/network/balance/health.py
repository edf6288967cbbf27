"""Whether backends live: asked from the layer's namespace, where they are reached as clients reach them."""

import asyncio
import socket
from collections.abc import Callable, Iterable

import msgspec

from lamella.host.network.fabric import Fabric
from lamella.model.balancer import Check
from lamella.model.errors import LamellaError

_STATUS_LINE = 64


class Probe(msgspec.Struct, frozen=True):
    """One thing to ask again and again: the same for every balancer that asks it."""

    address: str
    port: int
    check: Check


class Seen(msgspec.Struct, frozen=True):
    """``up`` is ``None`` until the first answer."""

    up: bool | None = None
    reason: str = ""


class Health:
    """*changed* is called when somebody has gone up or down."""

    def __init__(self, fabric: Fabric, changed: Callable[[], None]) -> None:
        self._fabric = fabric
        self._changed = changed
        self._seen: dict[Probe, Seen] = {}
        self._tasks: dict[Probe, asyncio.Task[None]] = {}

    def watch(self, probes: Iterable[Probe]) -> None:
        """Ask exactly these from now on."""
        wanted = set(probes)
        for probe in self._tasks.keys() - wanted:
            self._tasks.pop(probe).cancel()
            self._seen.pop(probe, None)
        for probe in wanted - self._tasks.keys():
            self._seen[probe] = Seen()
            self._tasks[probe] = asyncio.create_task(self._ask_on(probe), name=f"check {probe.address}:{probe.port}")

    def of(self, probe: Probe) -> Seen:
        return self._seen.get(probe, Seen())

    @property
    def settled(self) -> bool:
        """Whether everybody has been asked once."""
        return all(seen.up is not None for seen in self._seen.values())

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self.watch(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_on(self, probe: Probe) -> None:
        check, same = probe.check, 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            why = await self._ask(probe)
            before = self._seen[probe]
            up = why == ""
            # The first answer counts at once; later ones when there are enough of them.
            same = same + 1 if up != before.up else 0
            if before.up is None or same >= (check.rise if up else check.fall):
                self._seen[probe] = Seen(up, why)
                same = 0
                self._changed()
            await asyncio.sleep(max(0.0, check.interval - (loop.time() - began)))

    async def _ask(self, probe: Probe) -> str:
        """Why it does not live; empty when it does."""
        try:
            made = await self._fabric.in_layer("check a backend", lambda _: _endpoint())
        except LamellaError as error:
            return str(error)
        try:
            async with asyncio.timeout(probe.check.timeout):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(made, (probe.address, probe.port))
                return await _asked(made, probe) if probe.check.kind == "http" else ""
        except TimeoutError:
            return "it does not answer in time"
        except OSError as error:
            return error.strerror or str(error)
        finally:
            made.close()


def _endpoint() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


async def _asked(made: socket.socket, probe: Probe) -> str:
    """What is wrong with the answer to a GET (RFC 9112)."""
    loop = asyncio.get_running_loop()
    lines = (f"GET {probe.check.path} HTTP/1.1", f"Host: {probe.address}:{probe.port}", "User-Agent: lamella")
    await loop.sock_sendall(made, "\r\n".join((*lines, "Connection: close", "", "")).encode())
    said = b""
    while b"\n" not in said and len(said) < _STATUS_LINE:
        piece = await loop.sock_recv(made, _STATUS_LINE)
        if not piece:
            break
        said += piece
    version, _, rest = said.partition(b" ")
    code = rest[:3]
    if not version.startswith(b"HTTP/1.") or not code.isdigit():
        return "it does not answer as HTTP"
    return "" if b"200" <= code < b"400" else f"it answers {code.decode()}"
