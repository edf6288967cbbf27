"""IPv6 of networks and ports as rows: what a subnet may be, who has which address, and what carries IPv4 alone."""

from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_device_changes import ROOT, host_of, layer  # noqa: F401  (layer is a fixture)
from test_networks import made, removed

from lamella.control.addressing import gateway_of, static_address
from lamella.control.layer import Layer
from lamella.control.network import dual_stack, subnets
from lamella.model.errors import Conflict, Invalid, LamellaError
from lamella.model.firewall_text import format, parse
from lamella.model.instance import InstanceSpec, Isolation, Nic
from lamella.model.network import Network, NetworkSpec, NetworkStatus
from lamella.model.requests import InstanceCreate
from lamella.model.resource import new_resource
from lamella.model.router_bodies import RouterCreate


async def create(layer: Layer, *nics: Nic, name: str = "db") -> list[str]:  # noqa: F811
    """The addresses of IPv6 that its NICs got, in order."""
    wanted = InstanceSpec(image="debian:12", isolation=Isolation.VM, nics=list(nics))
    body = InstanceCreate(name=name, spec=wanted)
    await layer.create_instance(ROOT, "default", body, wait=0, idempotency_key=None)
    told = await layer.desk.assignments(await host_of(layer), 0, 0)
    asked = next(one for one in told.instances if one.instance.name == name)
    ports = [asked.port, *(asked.ports[nic.name or ""] for nic in nics[1:])]
    return [port.spec.address6 for port in ports if port is not None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fd10::7/64", "did you mean fd10::/64"),
        ("fd10::", "how long its prefix is"),
        ("somewhere", "fd10::/64"),
        ("10.10.0.0/24", "fd10::/64"),
        ("fd10::/48", "fd10::/64 has room"),
        ("fd10::/120", "fd10::/64 has room"),
        ("fe80::/64", "fd10::/64 is fine"),
        ("ff02::/64", "fd10::/64 is fine"),
        ("::/64", "fd10::/64 is fine"),
        ("fd6c:616d:1::/64", "fd10::/64 is fine"),
    ],
)
def test_what_is_no_subnet_is_said_with_what_would_be(text: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        subnets.parse(text, IPv6Network)
    assert said in (caught.value.hint or "") and caught.value.field == "subnet6"


def test_a_subnet_is_kept_in_its_one_form() -> None:
    assert str(subnets.parse("FD10:0:0::/64", IPv6Network)) == "fd10::/64"


@given(st.integers(2, 2**16 - 2), st.sets(st.integers(2, 300), max_size=40), st.integers(64, 112))
def test_a_free_address_is_free_and_like_that_of_ipv4(host: int, taken: set[int], length: int) -> None:
    subnet = IPv6Network(f"fd10::/{length}")
    network: Network = new_resource(
        "network", "n", NetworkSpec(subnet="10.10.0.0/16", subnet6=str(subnet)), NetworkStatus(), project="default"
    )
    four = IPv4Interface(int(IPv4Interface("10.10.0.0/16").ip) + host)
    occupied = {str(subnet.network_address + each) for each in taken}
    found = IPv6Interface(dual_stack.address6(network, Nic(), f"{four.ip}/16", occupied))
    assert found.ip in subnet and str(found.ip) not in occupied and found.network == subnet
    assert found.ip not in (subnet.network_address, gateway_of(subnet))
    if host not in taken:
        assert found.ip == subnet.network_address + host


@given(st.ip_addresses(v=6))
def test_an_address_that_is_asked_for_is_given_or_refused_with_a_sentence(address: IPv6Address) -> None:
    subnet = IPv6Network((int(address) >> 64 << 64, 64))
    for asked in (address, address + 1 if int(address) % 2 == 0 else address - 1):
        try:
            found = static_address(subnet, str(asked), set())
        except LamellaError as error:
            assert int(asked) - int(subnet.network_address) in (0, 1) and error.hint
        else:
            assert found.ip == asked


@pytest.mark.parametrize("text", ["from=fd10::/64:tcp:22", "from=fd10::7/128:icmp:echo", "from=::/0:udp:53", "icmp"])
def test_rules_name_prefixes_of_ipv6(text: str) -> None:
    assert format(parse(text)) == text
    assert parse(text.replace("from=fd10::/64:", "from=[fd10::/64]:")) == parse(text)


async def test_a_network_has_both_families_and_overlaps_no_other(layer: Layer) -> None:  # noqa: F811
    front = await made(layer, "front", subnet="10.10.0.0/24", subnet6="fd10::/64")
    assert (front.spec.subnet6, front.status.gateway6) == ("fd10::/64", "fd10::1")
    for subnet in ("fd10::/64", "fd10::/80"):
        with pytest.raises(Conflict, match="overlaps"):
            await made(layer, "other", subnet6=subnet)
    plain = await made(layer, "plain")
    assert (plain.spec.subnet6, plain.status.gateway6) == ("", "")
    await removed(layer, "front")
    assert (await made(layer, "again", subnet6="fd10::/64")).status.gateway6 == "fd10::1"


async def test_ports_get_an_address_of_each_or_the_one_that_is_asked_for(layer: Layer) -> None:  # noqa: F811
    await made(layer, "front", subnet="10.10.0.0/24", subnet6="fd10::/64")
    await made(layer, "plain")
    nics = Nic(network="front", address="10.10.0.7"), Nic(network="front", name="b", address6="FD10::99")
    assert await create(layer, *nics) == ["fd10::7/64", "fd10::99/64"]
    for address, error in (("fd10::99", Conflict), ("fd10::1", Conflict), ("fd10::", Invalid), ("fd11::2", Invalid)):
        with pytest.raises(error):
            await create(layer, Nic(network="front", address6=address), name="other")
    with pytest.raises(Invalid, match="no IPv6"):
        await create(layer, Nic(network="plain", address6="fd10::5"), name="other")
    assert await create(layer, Nic(network="plain"), name="four") == [""]


def test_what_goes_out_does_so_through_the_host() -> None:
    def to(address: str, *, isolated: bool = False) -> tuple[bool, str]:
        spec = NetworkSpec(subnet="10.10.0.0/24", subnet6="fd10::/64", isolated=isolated)
        front: Network = new_resource("network", "front", spec, NetworkStatus(), project="default")
        spec = NetworkSpec(subnet="10.11.0.0/24", subnet6="fd11::/64")
        back: Network = new_resource("network", "back", spec, NetworkStatus(), project="default")
        passes, why, _ = dual_stack.way6(front, [front, back], IPv6Address(address), None)
        return passes, why

    passes, why = to("2001:db8::1")
    assert passes and "through the host" in why
    for address, isolated, said in (
        ("2001:db8::1", True, "isolated"),
        ("fd10::9", False, "nobody has fd10::9"),
        ("fd11::9", False, "not joined"),
        ("fe80::1", False, "secrets"),
        ("fd00:ec2::254", False, "secrets"),
    ):
        passes, why = to(address, isolated=isolated)
        assert not passes and said in why


async def test_two_nics_of_one_instance_never_have_one_address(layer: Layer) -> None:  # noqa: F811
    await made(layer, "front", subnet="10.10.0.0/24", subnet6="fd10::/64")
    nics = Nic(network="front", address="10.10.0.7"), Nic(network="front", name="b", address6="fd10::7")
    assert await create(layer, *nics) == ["fd10::8/64", "fd10::7/64"]
    both = [Nic(network="front", address6="fd10::50"), Nic(network="front", name="b", address6="fd10::50")]
    with pytest.raises(Conflict, match="taken"):
        await create(layer, *both, name="other")


async def test_routers_and_floating_addresses_are_of_ipv4(layer: Layer) -> None:  # noqa: F811
    await made(layer, "front", subnet6="fd10::/64")
    with pytest.raises(Conflict, match="routers carry IPv4 alone"):
        await layer.routers.create(ROOT, "default", RouterCreate(name="edge", networks=["front"]))
    await layer.routers.create(ROOT, "default", RouterCreate(name="edge"))
    with pytest.raises(Invalid, match="routers carry IPv4 alone"):
        await made(layer, "behind", router="edge", subnet6="fd11::/64")
    with pytest.raises(Invalid, match="of IPv4 alone"):
        await made(layer, "public", external=True, subnet="203.0.113.0/24", subnet6="fd12::/64")


@pytest.mark.parametrize("isolation", dual_stack.WITHOUT)
def test_who_does_not_configure_ipv6_has_no_address_of_it(isolation: Isolation) -> None:
    network: Network = new_resource(
        "network", "n", NetworkSpec(subnet="10.10.0.0/24", subnet6="fd10::/64"), NetworkStatus(), project="default"
    )
    assert dual_stack.address6(network, Nic(), "10.10.0.7/24", set(), Isolation.CONTAINER) == "fd10::7/64"
    assert dual_stack.address6(network, Nic(), "10.10.0.7/24", set(), isolation) == ""
    with pytest.raises(Invalid, match="IPv4 alone"):
        dual_stack.address6(network, Nic(address6="fd10::7"), "10.10.0.7/24", set(), isolation)
