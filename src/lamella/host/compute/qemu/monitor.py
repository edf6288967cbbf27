"""A conversation with one QEMU over QMP: the few commands that a running microVM needs, with deadlines."""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec
from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError

from lamella.model.errors import Internal, Unavailable

PATIENCE = 10.0
# It tells at length of every connection that ends, which here is how microVMs end.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class _Status(msgspec.Struct):
    status: str
    running: bool


class _Balloon(msgspec.Struct):
    actual: int


class _Kvm(msgspec.Struct):
    enabled: bool
    present: bool


class Monitor:
    """Connected until :meth:`close`, or until QEMU ends.

    Every command raises :class:`Unavailable` when QEMU is gone or does not answer in ten seconds, and :class:`Internal` when it refuses.
    """

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Talk to the QEMU that listens at *path*; waits until it has started.

        :raise Unavailable: when nobody answers there.
        """
        client = QMPClient()
        # Nobody reads events here, and a guest could make QEMU send them without end.
        client.events.event_filter = lambda _: False
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            async with asyncio.timeout(PATIENCE):
                await client.connect(f"/proc/self/fd/{directory}/{path.name}")
        except (ConnectError, TimeoutError) as error:
            raise Unavailable(f"QEMU does not answer on its monitor: {error}") from error
        finally:
            os.close(directory)
        return cls(client)

    async def status(self) -> str:
        """The run state: ``running``, ``paused``, ``shutdown``, …"""
        return msgspec.convert(await self._ask("query-status"), _Status).status

    async def stop(self) -> None:
        """Let no virtual processor run."""
        await self._ask("stop")

    async def proceed(self) -> None:
        await self._ask("cont")

    async def set_memory(self, size: int) -> None:
        """Ask the guest, through the balloon, to keep *size* bytes and no more."""
        await self._ask("balloon", {"value": size})

    async def memory(self) -> int:
        """Bytes that the guest has now, the balloon's taken off."""
        return msgspec.convert(await self._ask("query-balloon"), _Balloon).actual

    async def kvm(self) -> bool:
        """Whether KVM is in use."""
        return msgspec.convert(await self._ask("query-kvm"), _Kvm).enabled

    async def close(self) -> None:
        with suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(1):
                await self._client.disconnect()

    async def _ask(self, command: str, values: dict[str, object] | None = None) -> object:
        try:
            async with asyncio.timeout(PATIENCE), self._turn:
                return await self._client.execute(command, values)
        except ExecuteError as error:
            raise Internal(f"QEMU refused {command}: {error}") from error
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise Unavailable(f"QEMU did not answer {command}: {error or 'it took too long'}") from error
