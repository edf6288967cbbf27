"""IPv6 as elements and arguments, computed from values alone."""

from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.host.network.driver import DesiredNetwork, DesiredPort, Resident
from lamella.host.network.guard import rules
from lamella.host.network.guard.family import IPV4, IPV6
from lamella.host.network.services import plan as services
from lamella.host.network.services.plan import Site
from lamella.host.network.six import plan
from lamella.model.errors import Invalid
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id

PLAIN = DesiredNetwork(id=new_id("network"), name="front", subnet="10.10.0.0/24", gateway="10.10.0.1", mtu=1500)
DUAL = replace(PLAIN, subnet6="fd10::/64", gateway6="fd10::1")
PORT = DesiredPort(
    id=new_id("port"),
    network=DUAL.id,
    address="10.10.0.7/24",
    mac="02:11:22:33:44:55",
    publish=[],
    address6="fd10::7/64",
)
SITE = Site(interface="lamx", gateway="10.10.0.1")


def test_the_link_local_address_follows_from_the_mac() -> None:
    # RFC 4291, appendix A: the universal bit is the other way round.
    assert plan.link_local("02:11:22:33:44:55") == IPv6Address("fe80::11:22ff:fe33:4455")


@given(st.integers(0, 2**48 - 1), st.integers(2, 2**64 - 1))
def test_elements_read_back_are_the_same(mac: int, host: int) -> None:
    text = ":".join(f"{byte:02x}" for byte in mac.to_bytes(6, "big"))
    port = replace(PORT, mac=text, address6=f"{IPv6Network('fd10::/64').network_address + host}/64")
    elements = plan.of_port(port)
    assert len({(one.container, one.key) for one in elements}) == 5
    for one in elements:
        words = [word.strip('"') for word in one.key.split(" . ")]
        assert plan.read(one.container, port.id, words) == one
        # Kernels write numbers without leading zeros, or in decimal.
        if one.container != "known":
            assert plan.read(one.container, port.id, [*words[:-1], str(int(words[-1], 16))]) == one


def test_networks_read_back_are_the_same() -> None:
    elements = plan.of_network(DUAL)
    assert {one.container for one in elements} == {"bridged", "gateways", "outbound"}
    isolated = plan.of_network(replace(DUAL, isolated=True))
    assert [one for one in elements if one not in isolated] == [one for one in elements if one.container == "outbound"]
    for one in elements:
        words = [word.strip('"') for word in one.key.split(" . ")]
        assert plan.read(one.container, DUAL.id, words) == one


@given(st.text("0123456789abcdef", min_size=8, max_size=8), st.text("0123456789abcdef", min_size=8, max_size=8))
def test_uplinks_of_layers_do_not_meet(one: str, other: str) -> None:
    first, second = plan.uplink6(f"lamella-{one}"), plan.uplink6(f"lamella-{other}")
    assert first.network.subnet_of(plan.UPLINKS) and first.host.ip != first.layer.ip
    assert {first.host.ip, first.layer.ip} <= set(first.network.hosts()) | {first.network.network_address}
    assert (one == other) == first.network.overlaps(second.network)


def test_without_ipv6_there_is_nothing_of_it() -> None:
    four = replace(PORT, address6="")
    assert plan.of_port(four) == [] and plan.of_network(PLAIN) == []
    assert rules.guarded({}, [replace(four, firewalls=["x"])], IPV6) == rules.Guarded()
    before, after = (services.service(network, SITE, [], []) for network in (PLAIN, DUAL))
    assert not [word for word in before.arguments if "enable-ra" in word or "option6" in word or "::" in word]
    assert set(before.arguments) < set(after.arguments)


def test_what_is_no_mac_becomes_no_rule() -> None:
    with pytest.raises(Invalid):
        plan.of_port(replace(PORT, mac='02:00:00:00:00:01" . x'))


def test_names_and_leases_have_both_addresses() -> None:
    made = services.service(DUAL, SITE, [Resident(port=PORT, name=("w1",))], [])
    assert made.files["hosts"] == "10.10.0.7 w1.front.internal w1\nfd10::7 w1.front.internal w1\n"
    assert made.files["leases"] == "02:11:22:33:44:55,10.10.0.7,[fd10::7],w1,1h\n"


@pytest.mark.parametrize(
    ("text", "four", "six"),
    [
        ("tcp:80", "tcp dport { 80 } ", "tcp dport { 80 } "),
        ("icmp", "meta l4proto icmp ", "meta l4proto ipv6-icmp "),
        ("icmp:echo", "icmp type { 8 } ", "icmpv6 type { 128 } "),
        ("icmp:17", "icmp type { 17 } ", None),
        ("from=10.0.0.0/8:udp", "ip saddr 10.0.0.0/8 meta l4proto udp ", None),
        ("from=fd10::/64:udp", None, "ip6 saddr fd10::/64 meta l4proto udp "),
        ("any", "", ""),
    ],
)
def test_a_rule_is_of_one_family_or_both(text: str, four: str | None, six: str | None) -> None:
    assert rules.match(parse(text), IPV4, inward=True) == four
    assert rules.match(parse(text), IPV6, inward=True) == six
