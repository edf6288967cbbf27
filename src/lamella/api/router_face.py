"""What the API asks of the layer about routers and floating addresses."""

from typing import Protocol

from lamella.model.requests import Principal
from lamella.model.router import FloatingAddress, Router
from lamella.model.router_bodies import AddressAttach, AddressCreate, RouterCreate


class RoutersFace(Protocol):
    """Listing, reading, changing and removing go through the verbs that every kind has."""

    async def create(self, who: Principal, project: str, body: RouterCreate) -> Router: ...


class AddressesFace(Protocol):
    async def create(self, who: Principal, project: str, body: AddressCreate) -> FloatingAddress: ...

    async def attach(self, who: Principal, project: str, name: str, body: AddressAttach) -> FloatingAddress: ...

    async def detach(self, who: Principal, project: str, name: str) -> FloatingAddress: ...
