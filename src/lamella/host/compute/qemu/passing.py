"""A machine's state out of one QEMU and into another (QMP reference manual, ``migrate``; QEMU's ``docs/devel/migration.rst``).

With ``x-ignore-shared`` memory that is a file both have open is not sent: what is left is the state of processors and devices.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from lamella.host.compute.qemu.memory_file import STATE
from lamella.host.compute.qemu.monitor import Monitor
from lamella.model.errors import Unavailable

DEADLINE = 60.0
# States in which a machine stands still only because somebody was sending it.
UNFINISHED = ("finish-migrate", "postmigrate")
_AGAIN = 0.002
_ON_THE_WAY = ("setup", "active")
# Bytes a second that nothing on one host reaches, and milliseconds in which what is left is sent while it stands still.
_FAST = 64 << 30
_LONGEST_PAUSE_MS = 20
# Bytes a second that hardly anything is, and bytes that are soon sent.
_SLOW = 1 << 20
_LITTLE = 16 << 20


class _Ram(msgspec.Struct):
    remaining: int


class _Migration(msgspec.Struct):
    status: str = "none"
    ram: _Ram | None = None
    reason: str = msgspec.field(name="error-desc", default="")


async def ignore_shared(monitor: Monitor) -> None:
    """Memory that is a shared file is not part of what is sent or received from now on."""
    await capabilities(monitor, {"x-ignore-shared": True})


async def capabilities(monitor: Monitor, wanted: dict[str, bool]) -> None:
    named = [{"capability": name, "state": state} for name, state in wanted.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": named})


async def save(monitor: Monitor, fd: int) -> None:
    """Write the state of a machine that stands still into the empty file *fd*.

    :raise Unavailable: when QEMU fails, or has not finished in a minute.
    """
    async with monitor.named_fd(fd) as name:
        await monitor.execute("migrate", {"uri": f"fd:{name}"})
        await passed(monitor)


async def load(monitor: Monitor) -> None:
    """Have a QEMU that was started with ``-incoming defer`` take over the state that its descriptor ``STATE`` reads.

    :raise Unavailable: when it is not the state of such a machine.
    """
    await ignore_shared(monitor)
    await monitor.execute("migrate-incoming", {"uri": f"fd:{STATE}"})
    await received(monitor)


async def passed(monitor: Monitor, until: str = "completed", deadline: float = DEADLINE) -> None:
    """Wait until what is sent has come to *until* (a status of ``query-migrate``).

    :raise Unavailable: when it fails, or does not come there in *deadline* seconds.
    """
    try:
        async with asyncio.timeout(deadline):
            while True:
                now = await monitor.ask(_Migration, "query-migrate")
                if now.status == until:
                    return
                if now.status in ("failed", "cancelled", "completed"):
                    raise Unavailable(f"QEMU could not write the machine's state down: {now.reason or now.status}")
                await asyncio.sleep(_AGAIN)
    except TimeoutError:
        raise Unavailable(f"QEMU did not write the machine's state down within {deadline:g} s") from None


async def received(monitor: Monitor, deadline: float = DEADLINE) -> None:
    """Wait until a machine has taken over what it is sent.

    :raise Unavailable: when it does not; QEMU ends by itself then.
    """
    try:
        async with asyncio.timeout(deadline):
            while await monitor.status() == "inmigrate":  # noqa: ASYNC110 - QEMU tells nobody
                await asyncio.sleep(_AGAIN)
    except TimeoutError:
        raise Unavailable(f"QEMU did not take over a machine's state within {deadline:g} s") from None


class TooSoon(Exception):
    """All was sent before anybody had been held."""


async def send(monitor: Monitor, fd: int, hold: Callable[[], Awaitable[None]] | None) -> None:
    """Send all of a running machine over the socket *fd*; *hold* is called when little is left to be sent, and nothing inside runs any more
    when it returns. Without one it is held already. Returns when the machine stands still, with only the last of it to be sent.

    :raise TooSoon: when it came to that before *hold* returned. :raise Unavailable: when it fails.
    """
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _FAST, "downtime-limit": _LONGEST_PAUSE_MS})
    await capabilities(monitor, {"x-ignore-shared": False, "pause-before-switchover": True})
    async with monitor.named_fd(fd) as name:
        await monitor.execute("migrate", {"uri": f"fd:{name}"})
        if hold is not None:
            await _nearly(monitor)
            # While it still runs, so slowly that the end hardly comes before it is held.
            await monitor.execute("migrate-set-parameters", {"max-bandwidth": _SLOW})
            await _before_the_end(monitor, hold)
            await monitor.execute("migrate-set-parameters", {"max-bandwidth": _FAST})
        await passed(monitor, until="pre-switchover")


async def _before_the_end(monitor: Monitor, hold: Callable[[], Awaitable[None]]) -> None:
    """A machine that stands still cannot be held any more: it is not waited for then."""
    holding = asyncio.ensure_future(hold())
    try:
        while not holding.done():
            if (await monitor.ask(_Migration, "query-migrate")).status not in _ON_THE_WAY:
                raise TooSoon
            await asyncio.wait([holding], timeout=_AGAIN)
        await holding
    finally:
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


async def _nearly(monitor: Monitor) -> None:
    """Wait until little is left, or nothing."""
    async with asyncio.timeout(DEADLINE):
        while True:
            now = await monitor.ask(_Migration, "query-migrate")
            if now.status not in _ON_THE_WAY or (now.ram is not None and 0 < now.ram.remaining < _LITTLE):
                return
            await asyncio.sleep(_AGAIN)


async def finish(monitor: Monitor) -> None:
    """Send the last of it; the machine stands still until it is told to go on.

    :raise Unavailable: when it fails.
    """
    await monitor.execute("migrate-continue", {"state": "pre-switchover"})
    await passed(monitor)


async def cancel(monitor: Monitor) -> None:
    """Send no more, if anything is being sent. The machine may stand still then."""
    await monitor.execute("migrate_cancel")
    with contextlib.suppress(Unavailable):
        await passed(monitor, until="cancelled")


async def receive(monitor: Monitor, fd: int) -> None:
    """Have a QEMU that was started with ``-incoming defer`` take over what comes over the socket *fd*, and never run."""
    async with monitor.named_fd(fd) as name:
        await monitor.execute("migrate-incoming", {"uri": f"fd:{name}"})


async def underway(monitor: Monitor) -> bool:
    """Whether a machine is being sent, or was and has not gone on since."""
    sent = (await monitor.ask(_Migration, "query-migrate")).status in (*_ON_THE_WAY, "pre-switchover", "device")
    return sent or await monitor.status() in UNFINISHED
