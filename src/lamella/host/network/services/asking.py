"""Who asks for metadata, and what they get: the network is told by the socket that they came to, the instance by its address there.

Both are theirs: the layer drops what a port sends under another address.
"""

import logging
import secrets
import time
from collections.abc import Iterable

from lamella.host.network.driver import DesiredNetwork, Resident
from lamella.host.network.fabric import Fabric
from lamella.host.network.services.metadata import Answer, Request, answer
from lamella.host.network.services.plan import Site
from lamella.host.network.services.speaking import Door, listening
from lamella.model.errors import LamellaError

log = logging.getLogger("lamella.host.network")


class Metadata:
    """One socket a network, in the namespace where its gateway is."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._key = secrets.token_bytes(32)
        self._networks: dict[str, DesiredNetwork] = {}
        self._residents: dict[tuple[str, str], Resident] = {}
        self._doors: dict[str, tuple[Site, Door]] = {}

    async def tell(
        self, networks: Iterable[tuple[DesiredNetwork, Site]], residents: dict[tuple[str, str], Resident]
    ) -> None:
        """Tell exactly *residents* (by network and address) of themselves, on exactly these networks; one where it cannot be is tried
        again by the next call."""
        places = {network.id: (network, site) for network, site in networks}
        self._networks = {id: network for id, (network, _) in places.items()}
        self._residents = residents
        for id, (site, door) in list(self._doors.items()):
            if id not in places or places[id][1] != site:
                door.close()
                self._doors.pop(id)
        for id, (network, site) in places.items():
            if id not in self._doors:
                try:
                    await self._open(network, site)
                except (LamellaError, OSError) as error:
                    log.warning("metadata of network %s: %s", network.name, error)

    async def _open(self, network: DesiredNetwork, site: Site) -> None:
        made = await self._fabric.in_layer(
            f"listen at the gateway of network {network.name}", lambda seat: listening(seat, site)
        )
        door = Door(lambda guest, request: self._answer(network.id, guest, request))
        await door.open(made)
        self._doors[network.id] = (site, door)

    def _answer(self, id: str, guest: str, request: Request) -> Answer:
        network, resident = self._networks.get(id), self._residents.get((id, guest))
        if network is None or resident is None:
            return Answer(status=404)
        return answer(request, network, resident, self._key, int(time.time()))

    def close(self) -> None:
        """Nobody is answered any more."""
        for _, door in self._doors.values():
            door.close()
        self._doors.clear()
