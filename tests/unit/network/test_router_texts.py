"""What lies behind ports by the routes of routers, as elements of a set."""

from msgspec.structs import replace

from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import port_name
from lamella.host.network.routers import rules
from lamella.host.network.routers.desired import DesiredRoute, DesiredRouter
from lamella.model.ids import new_id

NETWORK = new_id("network")
PORT = DesiredPort(
    id=new_id("port"), network=NETWORK, address="10.10.0.5/24", mac="02:00:00:00:00:05", publish=[], firewalls=[]
)


def router(*routes: tuple[str, str]) -> DesiredRouter:
    made = DesiredRouter(id=new_id("router"), name="edge", networks=[NETWORK])
    return replace(made, routes=[DesiredRoute(destination=to, via=via) for to, via in routes])


def elements(port: DesiredPort, *routes: tuple[str, str]) -> list[str]:
    text = rules.permitted("t", [router(*routes)], [port])
    assert text.startswith("flush set bridge t routed\n")
    return text.partition("{ ")[2].removesuffix(" }\n").split(", ") if "add" in text else []


def test_prefixes_that_overlap_are_one() -> None:
    place = f'"{port_name(PORT.id)}" . {PORT.mac}'
    found = elements(PORT, ("10.99.0.0/16", "10.10.0.5"), ("10.99.5.0/24", "10.10.0.5"), ("10.7.0.0/24", "10.10.0.5"))
    assert found == [f"{place} . 10.7.0.0/24", f"{place} . 10.99.0.0/16"]


def test_a_port_with_firewalls_sends_as_itself_alone() -> None:
    assert elements(replace(PORT, firewalls=[new_id("firewall")]), ("10.99.0.0/16", "10.10.0.5")) == []
