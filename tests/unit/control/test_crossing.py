"""What is said of a packet's way beyond its network."""

from ipaddress import IPv4Address

import pytest

from lamella.control.network.tracing import Ground, trace
from lamella.model.firewall import Firewall, FirewallSpec, FirewallStatus
from lamella.model.firewall_text import parse
from lamella.model.network import Network, NetworkSpec, NetworkStatus, Port, PortSpec, PortStatus
from lamella.model.resource import new_resource
from lamella.model.router import Router, RouterSpec, RouterStatus, StaticRoute
from lamella.model.verdict import Packet


def network(name: str, prefix: str, *, isolated: bool = False) -> Network:
    spec = NetworkSpec(subnet=f"{prefix}.0/24", isolated=isolated)
    return new_resource("network", name, spec, NetworkStatus(gateway=f"{prefix}.1"))


def port(owner: str, network: Network, address: str, *firewalls: Firewall) -> Port:
    spec = PortSpec(network=network.id, address=f"{address}/24", mac="02:00:00:00:00:01", owner=owner)
    spec.firewalls = [firewall.id for firewall in firewalls]
    return new_resource("port", f"{owner}-0", spec, PortStatus())


def router(name: str, *networks: Network, uplink: bool, routes: list[StaticRoute]) -> Router:
    spec = RouterSpec(networks=[one.id for one in networks], uplink=uplink, routes=routes)
    made: Router = new_resource("router", name, spec, RouterStatus())
    for one in networks:
        one.status.router = made.id
    return made


APP: Firewall = new_resource("firewall", "app", FirewallSpec(), FirewallStatus())
DB: Firewall = new_resource(
    "firewall", "db", FirewallSpec(inbound=[parse(f"from=firewall:{APP.id}:tcp:5432")]), FirewallStatus()
)
FRONT, BACK, TWIN = network("front", "10.10.0"), network("back", "10.20.0", isolated=True), network("twin", "10.10.0")
PLAIN, KEPT = network("plain", "10.30.0"), network("kept", "10.40.0", isolated=True)
ROUTE = StaticRoute(destination="10.99.0.0/24", via="10.10.0.3")
EDGE = router("edge", FRONT, BACK, uplink=True, routes=[ROUTE])
SHUT = router("shut", TWIN, uplink=False, routes=[])
PORTS = {
    one.spec.owner: one
    for one in (
        port("w1", FRONT, "10.10.0.2", APP),
        port("w2", FRONT, "10.10.0.3"),
        port("db", BACK, "10.20.0.2", DB),
        port("t1", TWIN, "10.10.0.2"),
        port("p1", PLAIN, "10.30.0.2"),
        port("k1", KEPT, "10.40.0.2"),
    )
}
GROUND = Ground(
    networks={one.id: one for one in (FRONT, BACK, TWIN, PLAIN, KEPT)},
    ports=list(PORTS.values()),
    firewalls={one.id: one for one in (APP, DB)},
    names={one.spec.owner: one.spec.owner for one in PORTS.values()} | {one.id: one.name for one in (APP, DB)},
    routers={one.id: one for one in (EDGE, SHUT)},
    floating={IPv4Address("198.51.100.5"): PORTS["w2"].id, IPv4Address("198.51.100.6"): PORTS["db"].id},
)


@pytest.mark.parametrize(
    ("sender", "to", "packet", "passes", "where", "why"),
    [
        ("w1", "10.20.0.2", "tcp:5432", True, "router", "router edge carries it to network back"),
        ("w1", "10.20.0.2", "tcp:5432", True, "firewall in", "db of db allows from=firewall:app:tcp:5432"),
        ("w2", "10.20.0.2", "tcp:5432", False, "firewall in", "no rule of db"),
        ("w2", "10.20.0.9", "tcp:80", False, "router", "nobody has 10.20.0.9 on network back"),
        ("w1", "10.20.0.1", "tcp:80", False, "router", "answers an ICMP echo"),
        ("db", "10.10.0.3", "tcp:80", True, "firewall in", "no firewall guards w2"),
        ("db", "203.0.113.9", "tcp:80", False, "router", "isolated"),
        ("w1", "203.0.113.9", "tcp:80", True, "uplink", "under the host's address"),
        ("w2", "203.0.113.9", "tcp:80", True, "uplink", "its floating address 198.51.100.5"),
        ("db", "10.99.0.7", "tcp:80", True, "router", "leads to 10.99.0.0/24 by 10.10.0.3"),
        ("w1", "10.30.0.2", "tcp:80", False, "router", "no router joins the two"),
        # Another has the same address behind another router.
        ("t1", "10.20.0.2", "tcp:80", False, "router", "router shut has no uplink"),
        ("t1", "10.10.0.3", "tcp:80", False, "network", "nobody has 10.10.0.3 on network twin"),
        ("p1", "10.10.0.2", "tcp:80", True, "uplink", "through the host"),
        ("p1", "10.40.0.2", "tcp:80", False, "network", "do not reach each other"),
        # Floating addresses: by the router, by the layer, and not out of what is kept in.
        (
            "w1",
            "198.51.100.5",
            "tcp:80",
            True,
            "address",
            "router edge leads floating address 198.51.100.5 to 10.10.0.3",
        ),
        ("db", "198.51.100.5", "tcp:80", True, "address", "router edge leads"),
        ("p1", "198.51.100.5", "tcp:80", True, "address", "the layer leads"),
        ("k1", "198.51.100.5", "tcp:80", False, "network", "isolated"),
        ("t1", "198.51.100.5", "tcp:80", False, "router", "no uplink"),
        # Its firewall sees who asks as the router shows him.
        ("w1", "198.51.100.6", "tcp:5432", False, "firewall in", "no rule of db"),
    ],
)
def test_a_trace_knows_routers(sender: str, to: str, packet: str, passes: bool, where: str, why: str) -> None:
    source, rule = PORTS[sender], parse(packet)
    asked = Packet(
        source=IPv4Address(source.spec.address.partition("/")[0]),
        destination=IPv4Address(to),
        protocol=rule.protocol.value,
        port=rule.ports[0].first,
    )
    said = trace(GROUND, source, asked)
    assert said.passes == passes, said
    assert any(step.where == where and why in step.because for step in said.steps), said.steps
    assert all(step.passes for step in said.steps[:-1]) and said.steps[-1].passes == passes
