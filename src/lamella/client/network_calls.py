"""What the library asks about networks, and about what passes them, as calls."""

from collections.abc import Mapping

import msgspec

from lamella.client import network_routes
from lamella.client.calls import Call, answer
from lamella.client.request import Request
from lamella.client.wish import seconds
from lamella.model.errors import Invalid
from lamella.model.network import Network, Port
from lamella.model.network_bodies import NetworkCreate, PortMirror


def create(
    project: str,
    name: str,
    *,
    subnet: str,
    subnet6: str,
    isolated: bool,
    mtu: int,
    external: bool,
    router: str,
    labels: Mapping[str, str] | None,
) -> Call[Network]:
    """:raise Invalid: when there can be no such network."""
    asked = {
        "name": name,
        "subnet": subnet,
        "subnet6": subnet6,
        "isolated": isolated,
        "mtu": mtu,
        "labels": dict(labels or {}),
    }
    try:
        body = msgspec.convert({**asked, "external": external, "router": router}, NetworkCreate)
    except msgspec.ValidationError as error:
        raise Invalid(f"the network cannot be asked for: {error}") from error
    return Call(network_routes.create(project, msgspec.json.encode(body)), answer(Network))


def mirror(project: str, instance: str, to: str | None, nic: str | None) -> Call[Port]:
    body = PortMirror(to=to, nic=nic)
    return Call(network_routes.mirror(project, instance, msgspec.json.encode(body)), answer(Port))


def capture(
    project: str, instance: str, *, nic: str | None, filter: str, duration: float | str | None, packets: int | None
) -> Request:
    """The answer is the file. :raise Invalid: when *duration* is none."""
    ends = None if duration is None else seconds(duration, field="duration")
    return network_routes.capture(project, instance, nic=nic, filter=filter, duration=ends, packets=packets)
