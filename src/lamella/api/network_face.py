"""What the API asks of the layer about networks and firewalls."""

from typing import Protocol

from lamella.model.balancer import Balancer
from lamella.model.firewall import Firewall
from lamella.model.network import Network
from lamella.model.network_bodies import BalancerCreate, FirewallCreate, FirewallDefault, FirewallMember, NetworkCreate
from lamella.model.operation import Project
from lamella.model.requests import Principal


class NetworksFace(Protocol):
    """Listing, reading, changing and removing go through the verbs that every kind has."""

    async def create(self, who: Principal, project: str, body: NetworkCreate) -> Network: ...


class BalancersFace(Protocol):
    async def create(self, who: Principal, project: str, body: BalancerCreate) -> Balancer: ...


class FirewallsFace(Protocol):
    async def create(self, who: Principal, project: str, body: FirewallCreate) -> Firewall: ...

    async def make_default(self, who: Principal, project: str, body: FirewallDefault) -> Project: ...

    async def attach(self, who: Principal, project: str, name: str, body: FirewallMember) -> Firewall: ...

    async def detach(self, who: Principal, project: str, name: str, body: FirewallMember) -> Firewall: ...
