"""Balancers: one address before many instances, at the level of connections or of HTTP."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lamella.model.instance import Publish
from lamella.model.resource import Condition, Labels, Resource

PortNumber = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(ge=0.1, le=60)]


class Listener(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A port of the balancer's address. Of ``tcp`` and ``udp`` connections are spread as they are; ``http`` and ``https`` are read, and
    their requests spread."""

    protocol: Literal["tcp", "udp", "http", "https"] = "tcp"
    port: PortNumber

    @property
    def transport(self) -> str:
        """``tcp`` or ``udp``."""
        return "udp" if self.protocol == "udp" else "tcp"

    @property
    def reads(self) -> bool:
        """Whether it is about requests rather than connections."""
        return self.protocol in ("http", "https")


class Target(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Who answers: every running instance of the project and the balancer's network that bears all ``labels``, or the one called
    ``instance``. ``port`` 0 is the listener's. With a ``host`` or a ``path`` it gets the requests for that host, or for that path and
    what is below it; of several that fit, the most particular one does."""

    labels: Annotated[Labels, Meta(max_length=16)] = {}
    instance: Annotated[str, Meta(max_length=63)] = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    host: Annotated[str, Meta(max_length=253, pattern=r"^([a-z0-9][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)*)?$(?!\n)")] = ""
    path: Annotated[str, Meta(max_length=200, pattern=r"^(/[A-Za-z0-9._~%/-]*)?$(?!\n)")] = ""


class Check(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """How it is told that a backend lives: ``tcp`` connects, ``http`` asks for ``path`` and wants 2xx or 3xx, ``none`` believes it.

    Every ``interval`` seconds, each with ``timeout`` seconds to answer; ``fall`` failures in a row take a backend out, ``rise`` answers
    bring it back. With the defaults a dead one is out after 2.1 s at most."""

    kind: Literal["tcp", "http", "none"] = "tcp"
    path: Annotated[str, Meta(max_length=200, pattern=r"^/[!-~]*$(?!\n)")] = "/"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    interval: Seconds = 0.7
    timeout: Seconds = 0.7
    fall: Annotated[int, Meta(ge=1, le=10)] = 2
    rise: Annotated[int, Meta(ge=1, le=10)] = 2


class BalancerSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``network`` is an id and ``address`` one of it, which nobody else has. ``spread`` says where a connection goes: to each backend in
    turn, or by the client's address, always to the same one while the backends stay. ``draining`` are names of instances that get no new
    connection. A connection to a backend that leaves has ``drain`` seconds to end. ``certificate`` is a file of the hosts that root
    reads: the certificate and private key of ``https``, in PEM."""

    network: str
    address: str
    listeners: Annotated[list[Listener], Meta(min_length=1, max_length=32)]
    targets: Annotated[list[Target], Meta(max_length=32)] = []
    check: Check = Check()
    spread: Literal["turn", "source"] = "turn"
    publish: Annotated[list[Publish], Meta(max_length=32)] = []
    draining: Annotated[list[Annotated[str, Meta(max_length=63)]], Meta(max_length=64)] = []
    drain: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    certificate: Annotated[str, Meta(max_length=1000, pattern=r"^(/[A-Za-z0-9._/-]+)?$(?!\n)")] = ""


class BackendState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One backend as its host sees it. ``state`` is ``up``, ``down``, ``draining`` or ``unknown``: it has yet to answer."""

    instance: str
    address: str
    port: int
    state: Literal["up", "down", "draining", "unknown"]
    reason: str = ""


class BalancerStatus(msgspec.Struct, kw_only=True):
    """``backends`` and ``conditions`` by the id of the host that saw them."""

    backends: dict[str, list[BackendState]] = {}
    conditions: dict[str, list[Condition]] = {}


Balancer = Resource[BalancerSpec, BalancerStatus]


class Member(msgspec.Struct, kw_only=True, frozen=True):
    """An instance that a target means, by its address on the balancer's network."""

    instance: str
    name: str
    address: str
    draining: bool = False


class BalancerTask(msgspec.Struct, kw_only=True):
    """A balancer as a host is told of it: ``members[i]`` are those of the host's instances that ``spec.targets[i]`` means."""

    balancer: Balancer
    members: list[list[Member]]


class BalancerReport(msgspec.Struct, kw_only=True):
    """What a host saw of the balancer with this id. ``events`` are (type, message) pairs, oldest first."""

    id: str
    backends: list[BackendState] = []
    conditions: list[Condition] = []
    events: list[tuple[str, str]] = []
