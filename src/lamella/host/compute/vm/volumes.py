"""Volumes of a running VM inside its guest: mounted by our agent where the machine says, and let go of before they are unplugged.

The host tells the agent each time that it begins to answer, so what a guest had before it booted again it has afterwards. Where no agent
of ours answers, a volume is a bare disk with its device's name for a serial number: :meth:`Mounting.why_not` says so.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from lamella.host.compute.driver import MountedVolume
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.vm.inside import Inside
from lamella.model.errors import Conflict, LamellaError, NotFound, Unavailable, Unsupported

logger = logging.getLogger(__name__)

# How long a guest may take to see a disk that was plugged in, and to let go of one that something still uses.
SIGHT = 15.0
RELEASE = 5.0
_GLANCE = 0.2
NOBODY = "a bare disk: Lamella's agent does not answer in the guest"


class Mounting:
    """What is mounted in one guest. *wanted* tells the machine's volumes as they are now."""

    def __init__(self, inside: Inside, wanted: Callable[[], list[MountedVolume]]) -> None:
        self._inside = inside
        self._wanted = wanted
        self._told: GuestClient | None = None
        self._problems: dict[str, str] = {}
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Tell each agent that begins to answer what it shall have mounted."""
        while True:
            client = self._inside.ours
            if client is not self._told:
                self._problems.clear()
                if client is not None:
                    with contextlib.suppress(LamellaError):
                        await self.bring(self._wanted())
                self._told = client
            if self._inside.ours is client:
                await self._inside.moved()

    async def bring(self, volumes: Iterable[MountedVolume]) -> None:
        """Have all of them mounted that can be; nothing without our agent.

        :raise LamellaError: when the guest cannot mount one; the others are mounted.
        """
        failed: LamellaError | None = None
        async with self._turn:
            for volume in volumes:
                if not mountable(volume) or self._inside.ours is None:
                    continue
                try:
                    await self._mount(volume)
                    self._problems[volume.device] = ""
                except Unsupported as error:
                    self._problems[volume.device] = f"a bare disk: {error.message}"
                except LamellaError as error:
                    logger.warning("volume %s: %s", volume.name, error)
                    self._problems[volume.device] = error.message
                    failed = error
        if failed is not None:
            raise failed

    async def let_go(self, volumes: Iterable[MountedVolume]) -> None:
        """Have these unmounted; what nobody of ours mounted is none of ours.

        :raise Conflict: when something inside goes on using one.
        """
        async with self._turn:
            for volume in volumes:
                if mountable(volume) and self._inside.ours is not None:
                    with contextlib.suppress(Unsupported, Unavailable):
                        await self._unmount(volume)
                self._problems.pop(volume.device, None)

    def why_not(self, volume: MountedVolume) -> str:
        """Why it is not mounted in the guest; empty when it is."""
        if not mountable(volume):
            return "a bare disk, as it was asked for"
        if self._inside.ours is None:
            return NOBODY
        return self._problems.get(volume.device, "the guest has not been told yet")

    async def _mount(self, volume: MountedVolume) -> None:
        deadline = asyncio.get_running_loop().time() + SIGHT
        while True:
            try:
                return await self._inside.mount(volume)
            except NotFound:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_GLANCE)

    async def _unmount(self, volume: MountedVolume) -> None:
        deadline = asyncio.get_running_loop().time() + RELEASE
        while True:
            try:
                return await self._inside.unmount(volume)
            except Conflict as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise Conflict(
                        f"the guest still uses volume {volume.name}: {error.message}",
                        hint="end what has files open there, and try again",
                    ) from error
                await asyncio.sleep(_GLANCE)


def mountable(volume: MountedVolume) -> bool:
    """Whether somebody inside is to mount it."""
    return bool(volume.target and volume.filesystem)
