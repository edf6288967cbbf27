"""A packet walked through what is asked of networks and firewalls: what becomes of it, and which rule says so. Pure."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import msgspec

from lamella.model.firewall import FIREWALL, Firewall
from lamella.model.firewall_text import format
from lamella.model.network import Network, Port
from lamella.model.trace import Trace, TraceStep
from lamella.model.verdict import Member, Packet, Side, Verdict, World, into, out_of

LINK_LOCAL = IPv4Network("169.254.0.0/16")
# The message and the services that the layer itself answers at a gateway, and where it tells of instances.
ECHO = 8
SERVICES = (("udp", 53), ("udp", 67), ("tcp", 53))
METADATA = IPv4Address("169.254.169.254")


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """All networks, ports and firewalls of the layer by id; ``names`` are those of the instances and
    firewalls that whoever asks may know, by id."""

    networks: Mapping[str, Network]
    ports: Sequence[Port]
    firewalls: Mapping[str, Firewall]
    names: Mapping[str, str]


def trace(ground: Ground, source: Port, packet: Packet) -> Trace:
    """The way of *packet*, which the port *source* sends by its own address."""
    steps = [
        _step(
            "port",
            True,
            f"{_name(ground, source)} sends as {packet.source}; by another address it would be dropped",
        )
    ]
    world = _world(ground)
    receiver = next((port for port in ground.ports if _address(port) == packet.destination), None)
    own = _to_layer(ground, source, packet)
    if own is not None:
        # Firewalls are between instances and others, not between them and the services of their network.
        steps.append(own)
    else:
        steps += _guarded(ground, source, out_of(world, packet), Side.OUT)
        if steps[-1].passes:
            steps += _way(ground, source, receiver, packet)
        if steps[-1].passes and receiver is not None:
            steps += _guarded(ground, receiver, into(world, packet), Side.IN)
    return Trace(
        source=str(packet.source),
        destination=str(packet.destination),
        protocol=packet.protocol,
        port=packet.port,
        passes=all(step.passes for step in steps),
        steps=steps,
    )


def _to_layer(ground: Ground, source: Port, packet: Packet) -> TraceStep | None:
    """What the layer itself makes of it; ``None`` when it is not for the layer."""
    network = ground.networks[source.spec.network]
    if str(packet.destination) == network.status.gateway:
        echo = packet.protocol == "icmp" and packet.type == ECHO
        text = f"{packet.destination} is the gateway of network {network.name}: it answers an ICMP echo, DNS, DHCP and nothing else"
        return _step("network", echo or (packet.protocol, packet.port) in SERVICES, text)
    if packet.destination == METADATA and (packet.protocol, packet.port) == ("tcp", 80):
        return _step("network", True, f"at {packet.destination} the layer tells instances of themselves (metadata)")
    return None


def _way(ground: Ground, source: Port, receiver: Port | None, packet: Packet) -> list[TraceStep]:
    """From the source's network to wherever the destination is."""
    network = ground.networks[source.spec.network]
    subnet, name = IPv4Network(network.spec.subnet), f"network {network.name}"
    if packet.destination in subnet:
        if receiver is None or receiver.spec.network != network.id:
            return [_step("network", False, f"nobody has {packet.destination} on {name}")]
        return [_step("network", True, f"the switch of {name} carries it to {_name(ground, receiver)}")]
    if packet.destination in LINK_LOCAL:
        return [
            _step(
                "network", False, "link-local addresses are not forwarded: a cloud gives out its host's secrets there"
            )
        ]
    if network.spec.isolated:
        return [_step("network", False, f"{name} is isolated: nothing goes out of it")]
    other = next((one for one in ground.networks.values() if packet.destination in IPv4Network(one.spec.subnet)), None)
    if other is not None:
        return [
            _step(
                "network",
                False,
                f"{packet.destination} is in the subnet of another network, and networks do not reach each other",
            )
        ]
    return [_step("uplink", True, "it goes out through the host, under the host's address; what is beyond decides")]


def _guarded(ground: Ground, port: Port, verdict: Verdict | None, side: Side) -> list[TraceStep]:
    """What the firewalls of *port* say on that side."""
    where, name = f"firewall {side}", _name(ground, port)
    if not port.spec.firewalls:
        return [_step(where, True, f"no firewall guards {name}")]
    names = ", ".join(_firewall(ground, id) for id in port.spec.firewalls)
    if verdict is None:
        return [_step(where, True, f"{names} of {name} let everything {side}")]
    if verdict.rule is None:
        return [_step(where, False, f"no rule of {names} lets it {'out of' if side is Side.OUT else 'in to'} {name}")]
    rule = verdict.rule
    if rule.peer.startswith(FIREWALL):
        rule = msgspec.structs.replace(rule, peer=FIREWALL + _firewall(ground, rule.peer.removeprefix(FIREWALL)))
    text = format(rule, outward=side is Side.OUT)
    return [_step(where, True, f"{_firewall(ground, verdict.firewall)} of {name} allows {text}")]


def _world(ground: Ground) -> World:
    members = {_address(port): Member(port.id, port.spec.firewalls) for port in ground.ports}
    return World({id: firewall.spec for id, firewall in ground.firewalls.items()}, members)


def _address(port: Port) -> IPv4Address:
    return IPv4Interface(port.spec.address).ip


def _firewall(ground: Ground, id: str) -> str:
    return ground.names.get(id, "a firewall of another project")


def _name(ground: Ground, port: Port) -> str:
    return ground.names.get(port.spec.owner, "an instance of another project")


def _step(where: str, passes: bool, because: str) -> TraceStep:
    return TraceStep(where=where, passes=passes, because=because)
