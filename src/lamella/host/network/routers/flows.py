"""Flows that go through a router because they began when they might, and would go another way now, or none: found, and forgotten.

What is forgotten meets the rules anew with its next packet. Flows that would begin as they are now are left alone: a daemon that starts
again ends none.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, ip_network
from socket import AF_INET, AF_INET6

import msgspec

from lamella.host.network import conntrack
from lamella.host.network.conntrack import Flow
from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.plan import PROTOCOLS, Forward, Transfer
from lamella.host.network.routers.desired import DesiredRouter


class _Place(msgspec.Struct, frozen=True):
    """A leg, by its gateway, and whether nothing goes out from there."""

    gateway: IPv4Address
    isolated: bool


class Course:
    """How a router's rules lead what begins now: the values that :func:`rules.router_rules` is computed from."""

    def __init__(
        self,
        router: DesiredRouter,
        networks: Iterable[DesiredNetwork],
        between: Transfer,
        forwards: Iterable[Forward],
    ) -> None:
        self._own = between.layer.ip
        self._uplink = router.uplink
        self._inbound = {
            (PROTOCOLS[one.protocol], one.uplink_port): (IPv4Address(one.address), one.port)
            for one in forwards
            if one.via == str(self._own)
        }
        self._floating = {IPv4Address(at): IPv4Address(to) for at, to in router.floating.items()}
        self._leaving = {to: at for at, to in self._floating.items()}
        self._places = {IPv4Network(one.subnet): _Place(IPv4Address(one.gateway), one.isolated) for one in networks}
        self._gateways = {place.gateway for place in self._places.values()}
        for route in router.routes:
            if (place := self._place(IPv4Address(route.via))) is not None:
                self._places[IPv4Network(route.destination)] = place

    def keeps(self, flow: Flow) -> bool:
        """Whether *flow*, were it to begin now, would be let through and translated as it is."""
        if {flow.source, flow.answers} & {self._own, *self._gateways}:
            return True  # the router's own: each packet of it meets other rules
        if not (
            isinstance(flow.source, IPv4Address)
            and isinstance(flow.destination, IPv4Address)
            and isinstance(flow.answers, IPv4Address)
        ):
            return True  # routers lead IPv4 alone
        source, target = self._place(flow.source), self._place(flow.answers)
        if (to := self._floating.get(flow.destination)) is not None:
            # Who asks from within is known by another address than its own, so that answers come back by the router.
            known_as = flow.source
            if source is not None:
                known_as = self._leaving.get(flow.source) or (target.gateway if target is not None else known_as)
            return flow.answers == to and flow.known_as == known_as
        if flow.destination == self._own:
            return self._inbound.get((flow.protocol, flow.port)) == (flow.answers, flow.answering_port)
        if source is None or flow.answers != flow.destination:
            return False
        if target is not None:
            return True
        return self._uplink and not source.isolated and flow.known_as == self._leaving.get(flow.source, self._own)

    def _place(self, address: IPv4Address) -> _Place | None:
        found = max((one for one in self._places if address in one), key=lambda one: one.prefixlen, default=None)
        return None if found is None else self._places[found]


def end_strays(course: Course) -> int:
    """Forget the flows of this thread's namespace, a router's, that *course* does not keep; how many they were.

    :raise OSError: when the kernel refuses.
    """
    strays = [flow for flow in conntrack.flows() if not course.keeps(flow)]
    if strays:
        conntrack.forget(strays)
    return len(strays)


def end_outgoing(network: DesiredNetwork) -> int:
    """Forget the flows of this thread's namespace, the layer's, that go out of *network*; how many they were.

    :raise OSError: when the kernel refuses.
    """
    subnets = [ip_network(subnet) for subnet in (network.subnet, network.subnet6) if subnet]
    outgoing = [
        flow
        for subnet in subnets
        for flow in conntrack.flows(AF_INET if subnet.version == 4 else AF_INET6)
        if flow.zone == 0 and flow.source in subnet and flow.answers not in subnet
    ]
    if outgoing:
        conntrack.forget(outgoing)
    return len(outgoing)
