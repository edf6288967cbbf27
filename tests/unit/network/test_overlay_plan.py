"""What tunnels become: exactly the neighbours that can be reached, and a difference that leads there from anything."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.names import bridge_name, overlay_name
from lamella.host.network.overlay import rules
from lamella.host.network.overlay.plan import Change, Entry, Overlay, Tunnel, change, overlay
from lamella.model.ids import new_id
from lamella.model.network import Neighbour

LOCAL = "192.0.2.1"
NETWORKS = [
    DesiredNetwork(id=new_id("network"), name=f"n{n}", subnet=f"10.{n}.0.0/24", gateway=f"10.{n}.0.1", mtu=1450, vni=n)
    for n in range(3)
]
LINKS = [overlay_name(network.id) for network in NETWORKS]
BRIDGES = [bridge_name(network.id) for network in NETWORKS]
MACS = st.sampled_from([f"02:00:00:00:00:{n:02x}" for n in range(4)])
HOSTS = st.sampled_from([f"192.0.2.{n}" for n in range(1, 4)])


@st.composite
def neighbours(draw: st.DrawFn) -> Neighbour:
    return Neighbour(
        port=new_id("port"),
        network=draw(st.sampled_from([network.id for network in NETWORKS])),
        address=f"10.0.0.{draw(st.integers(2, 5))}/24",
        mac=draw(MACS),
        host=draw(HOSTS),
    )


def entries(links: list[str], to: st.SearchStrategy[str]) -> st.SearchStrategy[frozenset[Entry]]:
    return st.frozensets(st.builds(Entry, link=st.sampled_from(links), mac=MACS, to=to), max_size=6)


TUNNELS = st.builds(
    Tunnel,
    network=st.just("x"),
    vni=st.integers(1, 3),
    local=HOSTS,
    mtu=st.sampled_from([1400, 1450]),
    bridge=st.sampled_from([*BRIDGES, ""]),
)


@st.composite
def worlds(draw: st.DrawFn) -> Overlay:
    """What somebody may find: links, entries of those links alone, and one answer an address."""
    tunnels = draw(st.dictionaries(st.sampled_from(LINKS), TUNNELS))
    there = sorted(tunnels)
    nothing = st.just(frozenset[Entry]())
    forwards = draw(entries(there, HOSTS) if there else nothing)
    answers = draw(entries(BRIDGES, st.sampled_from(["10.0.0.2", "10.0.0.3", "10.0.0.9"])))
    return Overlay(
        tunnels=tunnels,
        forwards=frozenset({(one.link, one.mac): one for one in forwards}.values()),
        bridged=draw(entries(there, st.just("")) if there else nothing),
        answers=frozenset({(one.link, one.to): one for one in answers}.values()),
        far=draw(st.frozensets(st.sampled_from(["a", "b"]))),
    )


def carried_out(seen: Overlay, done: Change) -> Overlay:
    """As a kernel does it: entries go with their link, and one replaces that of the same key."""
    kept = {link: tunnel for link, tunnel in seen.tunnels.items() if link not in done.remove.tunnels}
    tunnels = {**kept, **done.add.tunnels}

    def led(name: str) -> frozenset[Entry]:
        before, minus, plus = (getattr(one, name) for one in (seen, done.remove, done.add))
        assert minus <= before
        left = {one for one in before - minus if name == "answers" or one.link in kept}
        key = (lambda one: (one.link, one.to)) if name == "answers" else (lambda one: (one.link, one.mac))
        return frozenset(({key(one): one for one in left} | {key(one): one for one in plus}).values())

    assert done.remove.far <= seen.far and not done.add.far & seen.far
    return Overlay(
        tunnels=tunnels,
        forwards=led("forwards"),
        bridged=led("bridged"),
        answers=led("answers"),
        far=(seen.far - done.remove.far) | done.add.far,
    )


def one_each(told: list[Neighbour]) -> list[Neighbour]:
    """No two with the same MAC, or the same address, on a network: both are claims."""
    by_mac = {(one.network, one.mac): one for one in told}
    return list({(one.network, one.address): one for one in by_mac.values()}.values())


@given(worlds(), st.lists(neighbours()).map(one_each))
def test_from_anything_it_becomes_what_is_asked_and_then_rests(seen: Overlay, told: list[Neighbour]) -> None:
    wanted = overlay(NETWORKS, told, LOCAL)
    after = carried_out(seen, change(seen, wanted))
    assert after == wanted
    assert change(after, wanted) == Change() and change(after, wanted).words == []


@given(st.lists(neighbours()).map(one_each))
def test_whoever_is_on_another_host_is_reached_and_nobody_else(told: list[Neighbour]) -> None:
    wanted = overlay(NETWORKS, told, LOCAL)
    reached = {(one.network, one.mac) for one in told if one.host != LOCAL and one.network != NETWORKS[0].id}
    by_link = {overlay_name(network.id): network for network in NETWORKS}
    assert {(by_link[one.link].id, one.mac) for one in wanted.forwards} == reached
    assert len(wanted.bridged) == len(wanted.answers) == len(wanted.far) == len(reached)
    assert {tunnel.network for tunnel in wanted.tunnels.values()} == {network for network, _ in reached}
    assert all(one.link in wanted.tunnels for one in wanted.forwards | wanted.bridged)
    # A network without a number ends at its host.
    assert all(tunnel.vni for tunnel in wanted.tunnels.values())


def test_what_can_be_no_neighbour_is_passed_over() -> None:
    good = Neighbour(
        port=new_id("port"), network=NETWORKS[1].id, address="10.1.0.2/24", mac="02:00:00:00:00:01", host="192.0.2.2"
    )
    assert overlay(NETWORKS, [good], LOCAL).tunnels
    for bad in (
        replace(good, mac='02" }; flush ruleset'),
        replace(good, address="10.1.0.2; drop"),
        replace(good, address="224.0.0.1/24"),
        replace(good, host="elsewhere"),
        replace(good, host=LOCAL),
        replace(good, network=new_id("network")),
    ):
        assert overlay(NETWORKS, [bad], LOCAL) == Overlay(), bad


def test_a_host_takes_packets_of_a_network_from_those_that_have_its_ports() -> None:
    told = [
        Neighbour(port="", network=NETWORKS[n].id, address=f"10.{n}.0.{m}/24", mac=f"02:00:00:00:0{n}:0{m}", host=host)
        for n, m, host in ((1, 2, "192.0.2.2"), (1, 3, "192.0.2.3"), (2, 2, "192.0.2.2"))
    ]
    text = rules.host_rules("lamella-x", overlay(NETWORKS, told, LOCAL))
    assert "@th,96,24 1 ip saddr != { 192.0.2.2, 192.0.2.3 } drop" in text
    assert "@th,96,24 2 ip saddr != { 192.0.2.2 } drop" in text and text.count(" drop\n") == 2
