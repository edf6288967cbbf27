"""What passes a port's link, as a capture file: tcpdump(8) in the layer's namespace, read as it comes.

It runs as nobody, with the one capability that it takes to listen, and dies with the thread that began it: a daemon that is gone
captures nothing.
"""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator

from lamella.host.linux import binaries
from lamella.host.linux.processes import Child, environment, readable, spawn
from lamella.host.network.fabric import Fabric
from lamella.host.network.names import port_name
from lamella.model.capture import CaptureSpec
from lamella.model.errors import Invalid, NoRoom, NotFound, Unavailable
from lamella.model.host import Capability

# At once on one host: each costs a copy of every packet.
MOST = 8
_BEGIN, _END = 20.0, 5.0
_BLOCK = 1 << 16
_NOBODY = "65534"


def command(link: str, wish: CaptureSpec) -> list[str]:
    """The words of tcpdump for *wish* on *link*; every packet is written as soon as it came."""
    counted = ["-c", str(wish.packets)] if wish.packets else []
    chosen = ["--", wish.filter] if wish.filter.strip() else []
    return ["-i", link, "-n", "-p", "-U", "-s", str(wish.snapshot), *counted, "-w", "-", *chosen]


class Captures:
    """Those that go on."""

    def __init__(self, fabric: Fabric, mark: str) -> None:
        self._fabric = fabric
        self._mark = mark
        self._going = 0

    async def stream(self, port: str, wish: CaptureSpec) -> AsyncGenerator[bytes]:
        """A capture file (pcap), piece by piece, until *wish* is fulfilled, the link goes, or nobody reads any more.

        :raise Invalid: when the filter is none. :raise NotFound: when the port has no link here.
        :raise NoRoom: when ``MOST`` go on. :raise Unavailable: when tcpdump is not installed or does not begin.
        """
        if self._going >= MOST:
            raise NoRoom(f"{MOST} captures go on on this host", hint="end one of them")
        self._going += 1
        made: list[Child] = []
        reading, said = -1, os.memfd_create("capture")
        try:
            reading = await self._begin(port_name(port), wish, made, said)
            async for piece in _pieces(reading, made[0], wish.duration, said):
                yield piece
        finally:
            self._going -= 1
            for child in made:
                await child.end()
            os.close(said)
            if reading >= 0:
                os.close(reading)

    async def _begin(self, link: str, wish: CaptureSpec, made: list[Child], said: int) -> int:
        """Start it; the descriptor of what it writes."""
        words = [*_confined(), str(binaries.tool("tcpdump")), *command(link, wish)]
        if await self._fabric.in_layer("look for the port", lambda seat: seat.route.link(link)) is None:
            raise NotFound("the port has no link on this host", hint="its instance does not run")
        reading, writing = os.pipe()
        try:
            os.set_blocking(reading, False)
            # A child is in the namespace of the thread that starts it.
            await self._fabric.in_layer(
                "begin a capture",
                lambda _: made.append(spawn(words, environment=environment(self._mark), files={1: writing, 2: said})),
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return reading


def finding() -> Capability:
    """Whether packets can be captured here."""
    try:
        found, reason = str(binaries.tool("tcpdump")), "tcpdump is installed"
    except Unavailable as error:
        found, reason = "", error.message
    return Capability(name="network.capture", available=bool(found), value=found, reason=reason)


def _confined() -> list[str]:
    kept = "-all,+net_raw"
    return [
        *(str(binaries.tool("setpriv")), "--pdeathsig", "KILL", "--reuid", _NOBODY, "--regid", _NOBODY),
        *("--clear-groups", f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}"),
        *("--no-new-privs", "--"),
    ]


async def _pieces(reading: int, child: Child, duration: float, said: int) -> AsyncGenerator[bytes]:
    """What *child* writes. The file's header comes at once, and is what says that it listens."""
    loop = asyncio.get_running_loop()
    ends, begun, ended = loop.time() + _BEGIN, False, False
    while True:
        try:
            async with asyncio.timeout_at(ends):
                piece = await _read(reading)
        except TimeoutError:
            if not begun or ended:
                raise Unavailable(
                    f"tcpdump does not {'end' if ended else 'begin'}", hint="see the host's load"
                ) from None
            child.kill(signal.SIGINT)
            ends, ended = loop.time() + _END, True
            continue
        if not piece:
            break
        if not begun:
            begun, ends = True, loop.time() + duration if duration else None
        yield piece
    await child.wait()
    if not begun:
        raise _refusal(os.pread(said, 4096, 0).decode(errors="replace"))


async def _read(reading: int) -> bytes:
    while True:
        try:
            return os.read(reading, _BLOCK)
        except BlockingIOError:
            await readable(reading)


def _refusal(said: str) -> Invalid | Unavailable:
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    words = last.strip().removeprefix("tcpdump: ")
    if "filter" in words or "syntax" in words or "unknown" in words or "expression" in words:
        return Invalid(f"the filter is none: {words}", hint="see: man pcap-filter", field="filter")
    return Unavailable(f"tcpdump ended at once: {words}", hint="lamella doctor shows what this host lacks")
