"""What is said of a packet's way."""

from ipaddress import IPv4Address

import pytest

from lamella.control.network.tracing import Ground, trace
from lamella.model.firewall import Firewall, FirewallSpec, FirewallStatus
from lamella.model.firewall_text import parse
from lamella.model.network import Network, NetworkSpec, NetworkStatus, Port, PortSpec, PortStatus
from lamella.model.resource import new_resource
from lamella.model.verdict import Packet


def network(name: str, subnet: str, **spec: bool) -> Network:
    gateway = subnet.replace("0/24", "1")
    return new_resource("network", name, NetworkSpec(subnet=subnet, **spec), NetworkStatus(gateway=gateway))


def port(owner: str, network: Network, address: str, *firewalls: Firewall) -> Port:
    spec = PortSpec(network=network.id, address=f"{address}/24", mac="02:00:00:00:00:01", owner=owner)
    spec.firewalls = [firewall.id for firewall in firewalls]
    return new_resource("port", f"{owner}-0", spec, PortStatus())


def firewall(name: str, *inbound: str, outbound: list[str] | None = None) -> Firewall:
    rules = None if outbound is None else [parse(text) for text in outbound]
    spec = FirewallSpec(inbound=[parse(text) for text in inbound], outbound=rules)
    return new_resource("firewall", name, spec, FirewallStatus())


FRONT, BACK = network("front", "10.10.0.0/24"), network("back", "10.20.0.0/24", isolated=True)
WEB, SHUT = firewall("web", "tcp:80"), firewall("shut", outbound=["udp:53"])
PORTS = [
    port("w1", FRONT, "10.10.0.2", WEB),
    port("w2", FRONT, "10.10.0.3"),
    port("w3", FRONT, "10.10.0.4", SHUT),
    port("db", BACK, "10.20.0.2"),
]
GROUND = Ground(
    networks={one.id: one for one in (FRONT, BACK)},
    ports=PORTS,
    firewalls={one.id: one for one in (WEB, SHUT)},
    names={one.spec.owner: one.spec.owner for one in PORTS} | {one.id: one.name for one in (WEB, SHUT)},
)


@pytest.mark.parametrize(
    ("sender", "to", "packet", "passes", "where", "why"),
    [
        (1, "10.10.0.2", "tcp:80", True, "firewall in", "web of w1 allows tcp:80"),
        (1, "10.10.0.2", "tcp:81", False, "firewall in", "no rule of web lets it in to w1"),
        (0, "10.10.0.3", "tcp:9", True, "firewall in", "no firewall guards w2"),
        (2, "10.10.0.3", "tcp:53", False, "firewall out", "no rule of shut lets it out of w3"),
        (2, "10.10.0.3", "udp:53", True, "firewall in", "no firewall guards w2"),
        (1, "10.10.0.9", "tcp:80", False, "network", "nobody has 10.10.0.9 on network front"),
        (1, "10.20.0.2", "tcp:80", False, "network", "networks do not reach each other"),
        (3, "10.10.0.3", "tcp:80", False, "network", "network back is isolated"),
        (3, "192.0.2.1", "tcp:80", False, "network", "network back is isolated"),
        (1, "192.0.2.1", "tcp:80", True, "uplink", "out through the host"),
        (1, "169.254.169.254", "tcp:80", True, "network", "metadata"),
        (1, "169.254.169.254", "tcp:22", False, "network", "link-local"),
        (1, "10.10.0.1", "icmp", True, "network", "an ICMP echo, DNS, DHCP and nothing else"),
        (1, "10.10.0.1", "udp:53", True, "network", "DNS"),
        (1, "10.10.0.1", "tcp:22", False, "network", "and nothing else"),
    ],
)
def test_each_way_ends_with_its_reason(sender: int, to: str, packet: str, passes: bool, where: str, why: str) -> None:
    rule, source = parse(packet), PORTS[sender]
    asked = Packet(
        source=IPv4Address(source.spec.address.partition("/")[0]),
        destination=IPv4Address(to),
        protocol=rule.protocol.value,
        port=rule.ports[0].first if rule.ports else 0,
        type=8,
    )
    found = trace(GROUND, source, asked)
    assert (found.passes, found.steps[-1].where, found.steps[-1].passes) == (passes, where, passes)
    assert why in found.steps[-1].because
    assert all(step.passes for step in found.steps[:-1])
