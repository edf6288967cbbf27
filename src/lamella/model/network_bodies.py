"""Bodies of requests about networks, firewalls and balancers."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lamella.model.balancer import Check, Listener, Target
from lamella.model.board import DeviceName
from lamella.model.firewall import Rules
from lamella.model.instance import Publish
from lamella.model.network import Mtu
from lamella.model.requests import Labels


class NetworkCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Without a ``subnet`` a free one is chosen; without a ``subnet6`` it has no IPv6. Behind a ``router`` (its name) it may
    overlap networks that are not. ``external`` ones are for floating addresses."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    labels: Labels = {}
    subnet: Annotated[str, Meta(max_length=43)] = ""
    subnet6: Annotated[str, Meta(max_length=43)] = ""
    mtu: Mtu = 1500
    isolated: bool = False
    external: bool = False
    router: Annotated[str, Meta(max_length=63)] = ""


class FirewallCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Rules name other firewalls by name or id. Without ``outbound`` everything may go out."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    labels: Labels = {}
    inbound: Rules = []
    outbound: Rules | None = None


class BalancerCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``network`` is a name. Without an ``address`` it gets a free one of the network's subnet."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    labels: Labels = {}
    network: Annotated[str, Meta(min_length=1, max_length=63)] = "default"
    address: Annotated[str, Meta(max_length=15)] = ""
    listeners: Annotated[list[Listener], Meta(min_length=1, max_length=32)]
    targets: Annotated[list[Target], Meta(max_length=32)] = []
    check: Check = Check()
    spread: Literal["turn", "source"] = "turn"
    publish: Annotated[list[Publish], Meta(max_length=32)] = []
    drain: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    certificate: Annotated[str, Meta(max_length=1000, pattern=r"^(/[A-Za-z0-9._/-]+)?$(?!\n)")] = ""


class FirewallDefault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The firewall, by name or id, of every new NIC in the project that names none itself; empty: none."""

    firewall: Annotated[str, Meta(max_length=63)]


class PortMirror(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Mirror the NIC (``None``: the first) to the first NIC of the instance ``to``; ``None`` ends it."""

    nic: DeviceName | None = None
    to: Annotated[str, Meta(min_length=1, max_length=63)] | None = None


class FirewallMember(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All ports of the instance of that name."""

    instance: Annotated[str, Meta(min_length=1, max_length=63)]
