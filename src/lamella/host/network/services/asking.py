"""Who asks for metadata, and what they get: the network is told by the socket that they came to, the instance by its address there.

Both are theirs: the layer drops what a port sends under another address.
"""

import logging
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress

from lamella.host.network.driver import DesiredNetwork, Resident
from lamella.host.network.fabric import Fabric
from lamella.host.network.services.metadata import Answer, Request, answer
from lamella.host.network.services.plan import Site
from lamella.host.network.services.speaking import Crowd, Door, listening
from lamella.model.errors import LamellaError

log = logging.getLogger("lamella.host.network")


class Metadata:
    """One socket a network, in the namespace where its gateway is."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._key = secrets.token_bytes(32)
        self._networks: dict[str, DesiredNetwork] = {}
        self._residents: dict[tuple[str, str], Resident] = {}
        self._doors: dict[str, tuple[Site, int, Door]] = {}
        self._crowd = Crowd()

    async def tell(
        self, networks: Iterable[tuple[DesiredNetwork, Site]], residents: dict[tuple[str, str], Resident]
    ) -> None:
        """Tell exactly *residents* (by network and address) of themselves, on exactly these networks; one where it cannot be is tried
        again by the next call."""
        places = {network.id: (network, site, _space(site)) for network, site in networks}
        self._networks = {id: network for id, (network, _, _) in places.items()}
        self._residents = residents
        for id, (site, space, door) in list(self._doors.items()):
            if id not in places or places[id][1:] != (site, space):
                door.close()
                self._doors.pop(id)
        for id, (network, site, space) in places.items():
            if id not in self._doors:
                try:
                    await self._open(network, site, space)
                except (LamellaError, OSError) as error:
                    log.warning("metadata of network %s: %s", network.name, error)

    async def _open(self, network: DesiredNetwork, site: Site, space: int) -> None:
        made = await self._fabric.in_layer(
            f"listen at the gateway of network {network.name}", lambda seat: listening(seat, site)
        )
        door = Door(lambda guest, request: self._answer(network.id, guest, request), self._crowd)
        await door.open(made)
        self._doors[network.id] = (site, space, door)

    def _answer(self, id: str, guest: str, request: Request) -> Answer:
        network, resident = self._networks.get(id), self._residents.get((id, guest))
        if network is None or resident is None:
            return Answer(status=404)
        return answer(request, network, resident, self._key, int(time.time()))

    def close(self) -> None:
        """Nobody is answered any more."""
        for _, _, door in self._doors.values():
            door.close()
        self._doors.clear()


def _space(site: Site) -> int:
    """The inode of the namespace that *site* is in now: another may come to the same path. 0 where there is none, and for the layer's."""
    with suppress(OSError):
        return site.netns.stat().st_ino if site.netns is not None else 0
    return 0
