"""Which flows through a router would be led as they are if they began now."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from lamella.host.network.conntrack import Flow
from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.plan import Forward, Transfer
from lamella.host.network.routers.desired import DesiredRoute, DesiredRouter
from lamella.host.network.routers.flows import Course
from lamella.model.ids import new_id

BETWEEN = Transfer(IPv4Network("172.31.0.0/30"))
OWN, LAYER = str(BETWEEN.layer.ip), str(BETWEEN.host.ip)
FRONT, BACK = (
    DesiredNetwork(id=new_id("network"), name=name, subnet=f"{three}.0/24", gateway=f"{three}.1", mtu=1500)
    for name, three in (("front", "10.10.0"), ("back", "10.20.0"))
)
EDGE = DesiredRouter(
    id=new_id("router"),
    name="edge",
    networks=[FRONT.id, BACK.id],
    uplink=True,
    routes=[DesiredRoute("10.99.0.0/24", "10.20.0.5")],
    floating={"198.51.100.5": "10.10.0.2"},
)
PUBLISHED = Forward(
    owner=new_id("port"),
    protocol="tcp",
    host_address="0.0.0.0",
    host_port=8080,
    uplink_port=30001,
    address="10.20.0.2",
    port=80,
    via=OWN,
)
WEB, FLOAT = "203.0.113.9", "198.51.100.5"


def flow(source: str, to: str, answers: str = "", known_as: str = "", port: int = 80, answering_port: int = 80) -> Flow:
    return Flow(
        source=IPv4Address(source),
        destination=IPv4Address(to),
        protocol=6,
        answers=IPv4Address(answers or to),
        known_as=IPv4Address(known_as or source),
        port=port,
        answering_port=answering_port,
    )


WITHIN = flow("10.10.0.2", "10.20.0.2")
OUT, OUT_BY_FLOAT = flow("10.20.0.2", WEB, known_as=OWN), flow("10.10.0.2", WEB, known_as=FLOAT)
BEHIND_A_ROUTE = flow("10.99.0.7", WEB, known_as=OWN)
IN_BY_FLOAT = flow(WEB, FLOAT, "10.10.0.2")
TURNED = flow("10.10.0.3", FLOAT, "10.10.0.2", known_as="10.10.0.1")
ITSELF = flow("10.10.0.2", FLOAT, "10.10.0.2", known_as=FLOAT)
IN = flow(LAYER, OWN, "10.20.0.2", port=30001)
NAMES = flow("10.10.0.2", "10.10.0.1", port=53, answering_port=53)
METADATA = flow("10.20.0.2", "169.254.169.254", "10.20.0.1", answering_port=8775)
EVERY = {WITHIN, OUT, OUT_BY_FLOAT, BEHIND_A_ROUTE, IN_BY_FLOAT, TURNED, ITSELF, IN, NAMES, METADATA}


def ended(
    router: DesiredRouter = EDGE,
    front: DesiredNetwork = FRONT,
    back: DesiredNetwork = BACK,
    forwards: tuple[Forward, ...] = (PUBLISHED,),
) -> set[Flow]:
    networks = [one for one in (front, back) if one.id in router.networks]
    course = Course(router, networks, BETWEEN, forwards)
    return {one for one in EVERY if not course.keeps(one)}


def test_what_would_begin_as_it_is_goes_on() -> None:
    assert ended() == set()


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"back": replace(BACK, isolated=True)}, {OUT, BEHIND_A_ROUTE}),
        ({"front": replace(FRONT, isolated=True)}, {OUT_BY_FLOAT}),
        ({"router": replace(EDGE, uplink=False)}, {OUT, OUT_BY_FLOAT, BEHIND_A_ROUTE}),
        ({"router": replace(EDGE, floating={})}, {OUT_BY_FLOAT, IN_BY_FLOAT, TURNED, ITSELF}),
        (
            {"router": replace(EDGE, floating={FLOAT: "10.20.0.2"})},
            {OUT, OUT_BY_FLOAT, IN_BY_FLOAT, TURNED, ITSELF},
        ),
        ({"router": replace(EDGE, routes=[])}, {BEHIND_A_ROUTE}),
        ({"router": replace(EDGE, networks=[FRONT.id])}, {WITHIN, OUT, BEHIND_A_ROUTE, METADATA}),
        ({"forwards": ()}, {IN}),
        ({"forwards": (replace(PUBLISHED, port=81),)}, {IN}),
    ],
)
def test_what_would_begin_otherwise_ends(change: dict, gone: set[Flow]) -> None:
    assert ended(**change) == gone


def test_what_nobody_led_in_ends() -> None:
    course = Course(EDGE, [FRONT, BACK], BETWEEN, [])
    assert not course.keeps(flow(WEB, "10.10.0.2"))
