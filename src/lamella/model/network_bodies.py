"""Bodies of requests about networks and firewalls."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.firewall import Rules
from lamella.model.network import Mtu
from lamella.model.requests import Labels


class NetworkCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Without a ``subnet`` a free one is chosen."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    labels: Labels = {}
    subnet: Annotated[str, Meta(max_length=43)] = ""
    mtu: Mtu = 1500
    isolated: bool = False


class FirewallCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Rules name other firewalls by name or id. Without ``outbound`` everything may go out."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    labels: Labels = {}
    inbound: Rules = []
    outbound: Rules | None = None


class FirewallDefault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The firewall, by name or id, of every new NIC in the project that names none itself; empty: none."""

    firewall: Annotated[str, Meta(max_length=63)]


class FirewallMember(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All ports of the instance of that name."""

    instance: Annotated[str, Meta(min_length=1, max_length=63)]
