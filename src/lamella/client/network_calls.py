"""What the library asks about networks, as calls."""

from collections.abc import Mapping

import msgspec

from lamella.client import network_routes
from lamella.client.calls import Call, answer
from lamella.model.errors import Invalid
from lamella.model.network import Network
from lamella.model.network_bodies import NetworkCreate


def create(
    project: str, name: str, *, subnet: str, isolated: bool, mtu: int, labels: Mapping[str, str] | None
) -> Call[Network]:
    asked = {"name": name, "subnet": subnet, "isolated": isolated, "mtu": mtu, "labels": dict(labels or {})}
    try:
        body = msgspec.convert(asked, NetworkCreate)
    except msgspec.ValidationError as error:
        raise Invalid(f"the network cannot be asked for: {error}") from error
    return Call(network_routes.create(project, msgspec.json.encode(body)), answer(Network))
