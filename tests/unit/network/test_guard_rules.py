"""Firewalls as rules: a change of some ports is the same as computing all of them anew."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.host.network.driver import DesiredPort
from lamella.host.network.guard import rules
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id

WEB, APP, SHUT, ABSENT = (new_id("firewall") for _ in range(4))
SPECS = {
    WEB: FirewallSpec(inbound=[parse("tcp:80"), parse(f"from=firewall:{APP}:tcp:5432")]),
    APP: FirewallSpec(inbound=[parse("icmp")], outbound=[parse(f"to=firewall:{WEB}:tcp")]),
    SHUT: FirewallSpec(outbound=[]),
}
IDS = [new_id("port") for _ in range(12)]
NETWORKS = [new_id("network") for _ in range(2)]
# For each network its router: the zone of connection tracking that it has there, and the networks beside it.
BESIDE = [new_id("network") for _ in range(2)]
Routers = dict[str, tuple[int, list[str]]]
ROUTERS = st.fixed_dictionaries(
    {id: st.tuples(st.integers(0, 2), st.lists(st.sampled_from(BESIDE), unique=True)) for id in NETWORKS}
)
# For each port the network that it is on and its firewalls; None where it is not there.
PLACE = st.tuples(
    st.sampled_from(NETWORKS), st.lists(st.sampled_from([WEB, APP, SHUT, ABSENT]), unique=True, max_size=3)
)
PORTS = st.lists(st.none() | PLACE, min_size=len(IDS), max_size=len(IDS))


def desired(places: list[tuple[str, list[str]] | None], routers: Routers) -> dict[str, DesiredPort]:
    return {
        id: DesiredPort(
            id=id, network=place[0], address=f"10.7.0.{number}/24", mac=f"02:00:00:00:00:{number:02x}", publish=[],
            firewalls=place[1], zone=routers[place[0]][0], beside=routers[place[0]][1],
        )
        for number, (id, place) in enumerate(zip(IDS, places, strict=True))
        if place is not None
    }  # fmt: skip


@given(PORTS, PORTS, ROUTERS)
def test_a_step_is_what_computing_everything_gives(
    old: list[tuple[str, list[str]] | None], new: list[tuple[str, list[str]] | None], routers: Routers
) -> None:
    before, after = desired(old, routers), desired(new, routers)
    gone = [port for id, port in before.items() if after.get(id) != port]
    come = [port for id, port in after.items() if before.get(id) != port]
    whole = rules.guarded(SPECS, before.values())
    wanted = rules.guarded(SPECS, after.values())
    minus, plus = rules.step(whole, SPECS, gone, come)
    assert not rules.collide(whole, minus, plus)
    assert rules.change("t", minus, plus) == rules.change("t", whole, wanted)
    assert minus.bridges - plus.bridges == whole.bridges - wanted.bridges
    rules.take(whole, minus, plus)
    assert whole == wanted


@given(PORTS, ROUTERS)
def test_a_port_that_stays_as_it_is_changes_nothing(
    places: list[tuple[str, list[str]] | None], routers: Routers
) -> None:
    ports = desired(places, routers)
    whole = rules.guarded(SPECS, ports.values())
    minus, plus = rules.step(whole, SPECS, ports.values(), ports.values())
    assert rules.change("t", minus, plus) == ""
    rules.take(whole, minus, plus)
    assert whole == rules.guarded(SPECS, ports.values())


def test_two_ports_at_one_place_are_seen() -> None:
    places = [(NETWORKS[0], [WEB])] * 2 + [None] * (len(IDS) - 2)
    ports = list(desired(places, dict.fromkeys(NETWORKS, (0, []))).values())
    other = replace(ports[1], address=ports[0].address)
    whole = rules.guarded(SPECS, ports[:1])
    assert rules.collide(whole, *rules.step(whole, SPECS, [], [other]))
    assert not rules.collide(whole, *rules.step(whole, SPECS, ports[:1], [other]))
