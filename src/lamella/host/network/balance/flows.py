"""Connections to backends that leave: those of a dead one end at once, those of one that leaves by intent have their time."""

from collections.abc import Container, Iterable, Mapping
from ipaddress import IPv4Address

import msgspec

from lamella.host.network import conntrack
from lamella.host.network.balance.desired import Backend, DesiredBalancer
from lamella.host.network.plan import PROTOCOLS, Forward, Transfer


class Place(msgspec.Struct, frozen=True):
    """Where a backend answers, and an address and port by which clients come to it: what its flows are told by."""

    protocol: str
    address: IPv4Address
    port: int
    front: IPv4Address
    front_port: int


def places_of(
    balancer: DesiredBalancer, backend: Backend, forwards: Iterable[Forward], between: Transfer
) -> frozenset[Place]:
    """By the balancer's own address, and by the uplink for what is published."""
    listener = balancer.listeners[backend.listener]
    fronts = {(IPv4Address(balancer.address), listener.port)}
    for forward in forwards:
        if (forward.protocol, forward.port) == (listener.protocol, listener.port):
            fronts.add((between.layer.ip, forward.uplink_port))
    if listener.reads:
        return frozenset()  # haproxy's own connections: it ends them
    address = IPv4Address(backend.address)
    return frozenset(Place(listener.protocol, address, backend.port, front, port) for front, port in fronts)


class Leaving:
    """Places that take no connection any more, and until when theirs may go on (a monotonic clock, in seconds)."""

    def __init__(self) -> None:
        self._taking: dict[Place, float] = {}
        self._until: dict[Place, float] = {}

    def look(self, taking: Mapping[Place, float], dead: Container[Place], clock: float) -> frozenset[Place]:
        """Places whose flows are to end now. *taking* are those that take connections, with the seconds that theirs may go on for when one
        leaves; a *dead* one has none."""
        for place in taking:
            self._until.pop(place, None)
        for place in self._taking.keys() - taking.keys():
            self._until[place] = clock + self._taking[place]
        self._taking = dict(taking)
        due = frozenset(place for place, until in self._until.items() if until <= clock or place in dead)
        for place in due:
            del self._until[place]
        return due

    @property
    def next(self) -> float | None:
        """When flows are to end next."""
        return min(self._until.values(), default=None)


def end(places: Iterable[Place]) -> int:
    """Forget the flows of this thread's namespace that belong to *places*; how many they were.

    What is forgotten meets the rules anew: another backend that knows nothing of the connection, and ends it.

    :raise OSError: when the kernel refuses.
    """
    ended = set(places)
    names = {number: name for name, number in PROTOCOLS.items()}
    found = [
        flow
        for flow in conntrack.flows()
        if flow.protocol in names
        and isinstance(flow.answers, IPv4Address)
        and isinstance(flow.destination, IPv4Address)
        and Place(names[flow.protocol], flow.answers, flow.answering_port, flow.destination, flow.port) in ended
    ]
    conntrack.forget(found)
    return len(found)
