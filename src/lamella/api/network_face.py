"""What the API asks of the layer about networks."""

from typing import Protocol

from lamella.model.network import Network
from lamella.model.network_bodies import NetworkCreate
from lamella.model.requests import Principal


class NetworksFace(Protocol):
    """Listing, reading, changing and removing go through the verbs that every kind has."""

    async def create(self, who: Principal, project: str, body: NetworkCreate) -> Network: ...
