"""What the API asks of the layer about networks and firewalls."""

from typing import Protocol

from lamella.model.balancer import Balancer
from lamella.model.firewall import Firewall
from lamella.model.network import Network, Port
from lamella.model.network_bodies import (
    BalancerCreate,
    FirewallCreate,
    FirewallDefault,
    FirewallMember,
    NetworkCreate,
    PortMirror,
)
from lamella.model.operation import Project
from lamella.model.requests import Principal


class NetworksFace(Protocol):
    """Listing, reading, changing and removing go through the verbs that every kind has."""

    async def create(self, who: Principal, project: str, body: NetworkCreate) -> Network: ...

    async def mirror(self, who: Principal, project: str, name: str, body: PortMirror) -> Port:
        """Have a copy of all that passes a NIC of instance *name* sent to another instance; the port that is mirrored."""
        ...


class BalancersFace(Protocol):
    async def create(self, who: Principal, project: str, body: BalancerCreate) -> Balancer: ...


class FirewallsFace(Protocol):
    async def create(self, who: Principal, project: str, body: FirewallCreate) -> Firewall: ...

    async def make_default(self, who: Principal, project: str, body: FirewallDefault) -> Project: ...

    async def attach(self, who: Principal, project: str, name: str, body: FirewallMember) -> Firewall: ...

    async def detach(self, who: Principal, project: str, name: str, body: FirewallMember) -> Firewall: ...
