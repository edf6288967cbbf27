"""What the rules say, for any set of ports."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lamella.host.network import plan, rules
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.names import bridge_name, port_name, uplink_names
from lamella.host.network.plan import Forward, Transfer
from lamella.model.errors import Conflict, Invalid, NoRoom, Unsupported
from lamella.model.ids import new_id
from lamella.model.instance import Publish

BETWEEN = Transfer(IPv4Network("100.64.3.4/30"))
ADDRESSES = st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"])
PUBLISH = st.builds(
    Publish,
    host_address=ADDRESSES,
    host_port=st.integers(1, 40),
    port=st.integers(1, 40),
    protocol=st.sampled_from(["tcp", "udp"]),
)


def desired(number: int, publish: list[Publish] | None = None) -> DesiredPort:
    return DesiredPort(
        id=new_id("port"),
        network="net",
        address=f"10.83.{number >> 8}.{number & 255}/16",
        mac=f"02:00:0a:53:{number >> 8:02x}:{number & 255:02X}",
        publish=publish or [],
    )


def forwards(ports: list[DesiredPort]) -> list[Forward]:
    """As publishing does it: every wish a forward with an uplink port of its own."""
    made: list[Forward] = []
    for port in ports:
        for wish in port.publish:
            taken = {(forward.protocol, forward.uplink_port) for forward in made}
            made.append(
                Forward(
                    owner=port.id,
                    protocol=wish.protocol,
                    host_address=wish.host_address,
                    host_port=wish.host_port,
                    uplink_port=plan.uplink_port(taken, wish.protocol, wish.host_port),
                    address=port.address.partition("/")[0],
                    port=wish.port,
                )
            )
    return made


@given(st.lists(PUBLISH, max_size=30, unique_by=lambda one: (one.protocol, one.host_address, one.host_port)))
def test_every_published_port_is_exactly_once_in_each_map(publish: list[Publish]) -> None:
    ports = [desired(number + 2, [one]) for number, one in enumerate(publish)]
    made = forwards(ports)
    host = [plan.host_element(forward, BETWEEN) for forward in made]
    layer = [plan.layer_element(forward) for forward in made]
    assert len({(element.container, element.key) for element in host}) == len(publish)
    assert len({element.key for element in layer}) == len(publish)
    # Followed from one map to the other, each leads to the instance that asked for it.
    inbound = {element.key: element for element in layer}
    for port, element in zip(ports, host, strict=True):
        address, _, uplink_port = element.value.partition(" . ")
        wish = port.publish[0]
        assert address == "100.64.3.6"
        target = inbound[f"{plan.PROTOCOLS[wish.protocol]} . {uplink_port}"]
        assert target.value == f"{port.address.partition('/')[0]} . {wish.port}"
        assert element.owner == target.owner == port.id


@given(st.sets(st.integers(2, 65000), max_size=200))
def test_known_elements_are_unique_and_bind_link_mac_and_address(numbers: set[int]) -> None:
    ports = [desired(number) for number in numbers]
    elements = [plan.known(port) for port in ports]
    assert len({element.key for element in elements}) == len(ports)
    for port, element in zip(ports, elements, strict=True):
        link, mac, address = element.key.split(" . ")
        assert link == f'"{port_name(port.id)}"' and len(port_name(port.id)) <= 15
        assert mac == port.mac.lower() and f"{address}/16" == port.address


@given(st.lists(PUBLISH, max_size=8, unique_by=lambda one: (one.protocol, one.host_address, one.host_port)))
def test_asking_again_changes_nothing(publish: list[Publish]) -> None:
    port = desired(2, publish)
    made = forwards([port])
    again, missing = plan.kept(made, port)
    assert missing == [] and [again[place].published for place in range(len(publish))] == publish
    # Another port's forwards are never taken for one's own, and a new address wants new ones.
    assert plan.kept(made, desired(2, publish))[1] == list(range(len(publish)))


def test_a_host_port_of_0_keeps_what_was_chosen() -> None:
    port = desired(2, [Publish(port=80), Publish(host_port=40001, port=80)])
    chosen = desired(2, [Publish(host_port=40001, port=80), Publish(host_port=40000, port=80)])
    mine = [structs.replace(one, owner=port.id) for one in forwards([chosen])]
    again, missing = plan.kept(mine, port)
    assert missing == []
    assert [again[place].host_port for place in (0, 1)] == [40000, 40001]


@given(st.text("0123456789abcdef", min_size=8, max_size=8), st.lists(st.integers(0, 2**18 - 1), max_size=20))
def test_the_transfer_network_overlaps_nothing(digits: str, taken: list[int]) -> None:
    mark = f"lamella-{digits}"
    occupied = [IPv4Network((0x64400000 + 4 * number, 30)) for number in taken]
    first = plan.transfer(mark, occupied)
    assert not any(first.network.overlaps(other) for other in occupied)
    assert first.host.network == first.layer.network == first.network
    second = plan.transfer(mark, [*occupied, first.network])
    assert not second.network.overlaps(first.network)


def test_an_overlay_that_took_all_of_the_shared_space() -> None:
    found = plan.transfer("lamella-00000000", [IPv4Network("100.64.0.0/10")])
    assert found.network.subnet_of(IPv4Network("198.18.0.0/15"))
    with pytest.raises(NoRoom):
        plan.transfer("lamella-00000000", [IPv4Network("0.0.0.0/1"), IPv4Network("128.0.0.0/1")])


def test_uplink_ports_wrap_around_and_end() -> None:
    assert plan.uplink_port({("tcp", 65535)}, "tcp", 65535) == 1
    assert plan.uplink_port({("udp", 80)}, "tcp", 80) == 80
    with pytest.raises(NoRoom):
        plan.uplink_port({("tcp", number) for number in range(1, 65536)}, "tcp", 80)


@pytest.mark.parametrize(
    ("publish", "error"),
    [
        ([Publish(host_address="::", port=1)], Unsupported),
        ([Publish(host_address="nonsense", port=1)], Unsupported),
        ([Publish(host_address='1.1.1.1"; drop', port=1)], Unsupported),
        ([Publish(host_address="224.0.0.1", port=1)], Invalid),
        ([Publish(host_port=80, port=1), Publish(host_port=80, port=2)], Conflict),
        ([Publish(host_port=80, port=1), Publish(host_port=80, port=1, host_address="127.0.0.1")], Conflict),
    ],
)
def test_what_cannot_be_published_is_refused(publish: list[Publish], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan.check_publish(publish)


def test_what_can_be_published_is_not_refused() -> None:
    plan.check_publish([Publish(port=80), Publish(port=80), Publish(host_port=80, port=1)])
    plan.check_publish([Publish(host_port=53, port=53), Publish(host_port=53, port=53, protocol="udp")])


@pytest.mark.parametrize("change", [{"mac": '02:00"; flush'}, {"id": "port"}, {"id": 'port_" }; flush ruleset #'}])
def test_only_ids_and_macs_reach_the_rules(change: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        plan.known(structs.replace(desired(2), **change))


def test_names_fit_and_tell_layers_and_ports_apart() -> None:
    assert uplink_names("lamella-1a2b3c4d") == ("la1a2b3c4d-h", "la1a2b3c4d-u")
    ids = [new_id("port") for _ in range(2000)]
    assert len({port_name(id) for id in ids}) == 2000
    assert len(bridge_name(new_id("network"))) == 15


def test_subnets_that_meet() -> None:
    network = DesiredNetwork(id="a", name="a", subnet="10.83.0.0/16", gateway="10.83.0.1", mtu=1500)
    inner = DesiredNetwork(id="b", name="b", subnet="10.83.4.0/24", gateway="10.83.4.1", mtu=1500)
    uplink = DesiredNetwork(id="c", name="c", subnet="100.64.0.0/16", gateway="100.64.0.1", mtu=1500)
    plan.check_subnet(network, [network], BETWEEN)
    with pytest.raises(Conflict, match="of network a"):
        plan.check_subnet(inner, [network], BETWEEN)
    with pytest.raises(Conflict, match="the uplink"):
        plan.check_subnet(uplink, [network], BETWEEN)
    assert plan.shadowed(network, [IPv4Network("192.0.2.0/24")]) is None
    found = plan.shadowed(network, [IPv4Network("10.83.9.0/24"), IPv4Network("10.0.0.0/8")])
    assert found is not None and "10.0.0.0/8, 10.83.9.0/24" in found.reason


def test_rules_may_be_given_again_and_touch_our_tables_only() -> None:
    for text in (rules.host_rules("lamella-1", "up", BETWEEN), rules.layer_rules("lamella-1", "up")):
        for line in text.strip().splitlines():
            verb, kind, _, table = line.split()[:4]
            assert (verb, kind) in {("add", k) for k in ("table", "map", "set", "chain", "rule")} | {("flush", "table")}
            assert table == "lamella-1"
