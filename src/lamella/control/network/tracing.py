"""A packet walked through what is asked of networks and firewalls: what becomes of it, and which rule says so. Pure."""

from collections.abc import Mapping, Sequence, Set
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import msgspec
from msgspec.structs import replace

from lamella.control.network.crossing import Crossed, Roads, address_of, beyond, met
from lamella.control.network.dual_stack import address6_of, way6
from lamella.model.firewall import FIREWALL, Firewall
from lamella.model.firewall_text import format
from lamella.model.network import Network, Port
from lamella.model.router import Router
from lamella.model.trace import Trace, TraceStep
from lamella.model.verdict import Address, Member, Packet, Side, Verdict, World, into, out_of

LINK_LOCAL = IPv4Network("169.254.0.0/16")
# The message and the services that the layer itself answers at a gateway, and where it tells of instances.
ECHO = {4: 8, 6: 128}
SERVICES = {4: (("udp", 53), ("udp", 67), ("tcp", 53)), 6: (("udp", 53), ("udp", 547), ("tcp", 53))}
METADATA = IPv4Address("169.254.169.254")


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """All networks, ports, firewalls and routers of the layer by id; ``floating`` addresses have the id of the port that they lead to;
    ``names`` are those of the instances and firewalls that whoever asks may know, by id; ``tunnelling`` are the ids of the hosts that
    networks go on from."""

    networks: Mapping[str, Network]
    ports: Sequence[Port]
    firewalls: Mapping[str, Firewall]
    names: Mapping[str, str]
    routers: Mapping[str, Router] = {}
    floating: Mapping[IPv4Address, str] = {}
    tunnelling: Set[str] = frozenset()

    @property
    def roads(self) -> Roads:
        return Roads(networks=self.networks, ports=self.ports, routers=self.routers, floating=self.floating)


def trace(ground: Ground, source: Port, packet: Packet) -> Trace:
    """The way of *packet*, which the port *source* sends by its own address."""
    steps = [
        _step(
            "port",
            True,
            f"{_name(ground, source)} sends as {packet.source}; by another address it would be dropped",
        )
    ]
    version = packet.source.version
    world = _world(ground, source, version)
    receiver = next((port for port in met(ground.roads, source) if _address(port, version) == packet.destination), None)
    own = _to_layer(ground, source, packet)
    if own is not None:
        # Firewalls are between instances and others, not between them and the services of their network.
        steps.append(own)
    else:
        steps += _guarded(ground, source, out_of(world, packet), Side.OUT)
        if steps[-1].passes:
            crossed = _way(ground, source, receiver, packet)
            steps += crossed.steps
            receiver = crossed.receiver
            if receiver is not None and steps[-1].passes:
                routed = crossed.destination != packet.destination or receiver.spec.network != source.spec.network
                steps += _to_host(ground, source, receiver, routed=routed)
            if steps[-1].passes and receiver is not None:
                seen = replace(packet, source=crossed.source, destination=crossed.destination)
                steps += _guarded(ground, receiver, into(_world(ground, receiver, version), seen), Side.IN)
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
    version = packet.destination.version
    if str(packet.destination) == (network.status.gateway if version == 4 else network.status.gateway6):
        echo = packet.protocol == "icmp" and packet.type == ECHO[version]
        text = f"{packet.destination} is the gateway of network {network.name}: it answers an ICMP echo, DNS, DHCP and nothing else"
        return _step("network", echo or (packet.protocol, packet.port) in SERVICES[version], text)
    if packet.destination == METADATA and (packet.protocol, packet.port) == ("tcp", 80):
        return _step("network", True, f"at {packet.destination} the layer tells instances of themselves (metadata)")
    return None


def _way(ground: Ground, source: Port, receiver: Port | None, packet: Packet) -> Crossed:
    """From the source's network to wherever the destination is."""
    network = ground.networks[source.spec.network]
    name = f"network {network.name}"
    if isinstance(packet.destination, IPv6Address):
        others = list(ground.networks.values())
        passes, text, found = way6(network, others, packet.destination, receiver)
        if passes and found is None:
            outward = _step("uplink", True, text)
            return Crossed(steps=[outward], source=packet.source, destination=packet.destination)
        said = f"{text} {_name(ground, found)}" if found is not None else text
        return _ended(source, packet, passes, said, found)
    if packet.destination in IPv4Network(network.spec.subnet):
        if receiver is None or receiver.spec.network != network.id:
            return _ended(source, packet, False, f"nobody has {packet.destination} on {name}")
        text = f"the switch of {name} carries it to {_name(ground, receiver)}"
        return _ended(source, packet, True, text, receiver)
    if packet.destination in LINK_LOCAL:
        text = "link-local addresses are not forwarded: a cloud gives out its host's secrets there"
        return _ended(source, packet, False, text)
    echo = packet.protocol == "icmp" and packet.type == ECHO[4]
    return beyond(ground.roads, source, packet.destination, echo=echo)


def _to_host(ground: Ground, source: Port, receiver: Port, *, routed: bool) -> list[TraceStep]:
    """From host to host, when they are on two."""
    ends = source.status.host, receiver.status.host
    if ends[0] == ends[1]:
        return []
    name = _name(ground, receiver)
    if routed:
        return [_step("host", False, f"{name} is on another host, and routers lead to instances of their own alone")]
    if any(end not in ground.tunnelling for end in ends):
        text = f"{name} is on another host, and one of the two has no tunnel: its daemon was not told --underlay"
        return [_step("host", False, text)]
    return [_step("host", True, f"{name} is on another host: VXLAN carries it there")]


def _ended(source: Port, packet: Packet, passes: bool, text: str, receiver: Port | None = None) -> Crossed:
    return Crossed(
        steps=[_step("network", passes, text)],
        source=packet.source,
        destination=packet.destination,
        receiver=receiver,
    )


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


def _address(port: Port, version: int) -> Address | None:
    return address_of(port) if version == 4 else address6_of(port)


def _world(ground: Ground, around: Port, version: int) -> World:
    """What firewalls on the network of *around* tell by addresses of that family."""
    members: dict[Address, Member] = {}
    for port in met(ground.roads, around):
        if (address := _address(port, version)) is not None:
            members[address] = Member(port.id, port.spec.firewalls)
    return World({id: firewall.spec for id, firewall in ground.firewalls.items()}, members)


def _firewall(ground: Ground, id: str) -> str:
    return ground.names.get(id, "a firewall of another project")


def _name(ground: Ground, port: Port) -> str:
    return ground.names.get(port.spec.owner, "an instance of another project")


def _step(where: str, passes: bool, because: str) -> TraceStep:
    return TraceStep(where=where, passes=passes, because=because)
