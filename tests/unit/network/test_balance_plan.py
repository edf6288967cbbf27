"""Rules of balancers, and when connections end: whatever is asked, what is added goes, and the way from one to the other is whole."""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.network.balance import plan
from lamella.host.network.balance.desired import Backend, DesiredBalancer, desired
from lamella.host.network.balance.flows import Leaving, Place, places_of
from lamella.host.network.balance.plan import Balanced
from lamella.host.network.plan import Forward, transfer
from lamella.model.balancer import (
    BalancerSpec,
    BalancerStatus,
    BalancerTask,
    Listener,
    Member,
    Target,
)
from lamella.model.resource import new_resource

IDS = [f"bal_{number}" for number in range(3)]


@st.composite
def balancers(draw: st.DrawFn) -> list[DesiredBalancer]:
    found: list[DesiredBalancer] = []
    for number, id in enumerate(IDS):
        if not draw(st.booleans()):
            continue
        ports = draw(st.sets(st.integers(80, 83), min_size=1, max_size=2))
        listeners = [Listener(protocol=draw(st.sampled_from(["tcp", "udp"])), port=port) for port in sorted(ports)]
        backends = [
            Backend(
                listener=draw(st.integers(0, len(listeners) - 1)),
                instance="",
                name=f"i{place}",
                address=f"10.0.0.{draw(st.integers(2, 4))}",
                port=8080,
                draining=draw(st.booleans()),
            )
            for place in range(draw(st.integers(0, 3)))
        ]
        found.append(
            DesiredBalancer(
                id=id, name=id, network="net", address=f"10.0.0.{100 + number}", listeners=listeners, backends=backends
            )
        )
    return found


def forwards(some: list[DesiredBalancer]) -> dict[str, list[Forward]]:
    return {
        one.id: [
            Forward(
                owner=one.id,
                protocol=one.listeners[0].protocol,
                host_address="0.0.0.0",
                host_port=8000 + place,
                uplink_port=9000 + place,
                address=one.address,
                port=one.listeners[0].port,
            )
        ]
        for place, one in enumerate(some)
    }


def balanced(some: list[DesiredBalancer], dead: set[str] = frozenset()) -> Balanced:
    return plan.balanced(some, forwards(some), lambda _, backend: backend.address not in dead)


class Kernel:
    """What nft would have after these transactions; it refuses what nft refuses."""

    def __init__(self) -> None:
        self.chains: dict[str, list[str]] = {}
        self.elements: dict[str, set[str]] = {name: set() for name in ("services", "published", "own", "fronts")}

    def run(self, text: str) -> None:
        for line in text.splitlines():
            verb, what, _, _, name, *rest = line.split(" ")
            if what == "chain":
                if verb == "add":
                    assert name not in self.chains
                    self.chains[name] = []
                elif verb == "flush":
                    self.chains[name].clear()
                else:
                    assert not self.chains.pop(name) and not self.jumped(name)
            elif what == "rule":
                self.chains[name].append(" ".join(rest))
            else:
                for element in " ".join(rest).strip("{} ").split(", "):
                    if verb == "delete":
                        self.elements[name].remove(element)
                    else:
                        assert not any(_key(other) == _key(element) for other in self.elements[name])
                        self.elements[name].add(element)
        for name in ("services", "published"):
            for element in self.elements[name]:
                assert element.rpartition(" ")[2] in self.chains

    def jumped(self, chain: str) -> bool:
        return any(
            element.endswith(f"jump {chain}") for name in ("services", "published") for element in self.elements[name]
        )


def _key(element: str) -> str:
    return element.partition(" : ")[0]


@settings(deadline=None)
@given(st.lists(st.tuples(balancers(), st.sets(st.sampled_from(["10.0.0.2", "10.0.0.3"]))), min_size=1, max_size=4))
def test_changes_lead_to_what_is_asked_and_no_further(steps: list[tuple[list[DesiredBalancer], set[str]]]) -> None:
    kernel, before = Kernel(), Balanced()
    for some, dead in steps:
        after = balanced(some, dead)
        kernel.run(plan.change("t-b", before, after))
        assert kernel.chains == {name: [rule] if rule else [] for name, rule in after.chains.items()}
        assert {_key(element) for element in kernel.elements["services"]} == after.services.keys() == after.fronts
        assert plan.change("t-b", after, after) == ""
        before = after
    kernel.run(plan.change("t-b", before, Balanced()))
    assert kernel.chains == {} and not any(kernel.elements.values())


@settings(deadline=None)
@given(balancers(), st.sets(st.sampled_from(["10.0.0.2", "10.0.0.3", "10.0.0.4"])))
def test_only_those_that_live_and_stay_get_connections_an_equal_share_each(
    some: list[DesiredBalancer], dead: set[str]
) -> None:
    found = balanced(some, dead)
    for one in some:
        for place, listener in enumerate(one.listeners):
            takers = {
                backend.address
                for backend in one.backends
                if backend.listener == place and not backend.draining and backend.address not in dead
            }
            rule = found.chains[plan.chain_name(one.id, listener)]
            slots = re.findall(r"(\d+) : (\S+) \. 8080", rule)
            assert {address for _, address in slots} == takers and len(slots) == len(takers)
            assert [int(number) for number, _ in slots] == list(range(len(takers)))
            assert not slots or f"mod {len(slots)} " in rule


def test_what_is_published_leads_to_the_same_chain() -> None:
    one = DesiredBalancer(
        id=IDS[0], name="www", network="net", address="10.0.0.100", listeners=[Listener(port=80), Listener(port=81)]
    )
    found = balanced([one])
    assert found.published == {"6 . 9000": found.services["10.0.0.100 . 6 . 80"]}
    backend = Backend(listener=0, instance="", name="w1", address="10.0.0.2", port=8080)
    between = transfer("lamella-1", [])
    fronts = {(place.front, place.front_port) for place in places_of(one, backend, forwards([one])[one.id], between)}
    assert fronts == {(IPv4Address("10.0.0.100"), 80), (between.layer.ip, 9000)}


def test_targets_that_mean_the_same_are_one_backend_by_their_own_port_or_the_listeners() -> None:
    spec = BalancerSpec(
        network="net",
        address="10.0.0.100",
        listeners=[Listener(port=80), Listener(port=443)],
        targets=[Target(labels={"a": "b"}), Target(instance="w1"), Target(instance="w2", port=8080)],
    )
    row = new_resource("balancer", "www", spec, BalancerStatus())
    one, two = (Member(instance=f"i{n}", name=f"w{n}", address=f"10.0.0.{n}") for n in (1, 2))
    found = desired(BalancerTask(balancer=row, members=[[one], [one], [two]]))
    assert {(each.listener, each.name, each.port) for each in found.backends} == {
        (0, "w1", 80), (1, "w1", 443), (0, "w2", 8080), (1, "w2", 8080),
    }  # fmt: skip
    assert len(found.backends) == 4


def place(number: int) -> Place:
    return Place("tcp", IPv4Address(f"10.0.0.{number}"), 80, IPv4Address("10.0.0.100"), 80)


def test_connections_of_what_leaves_have_their_time_and_those_of_the_dead_none() -> None:
    leaving = Leaving()
    both: Mapping[Place, float] = {place(1): 30.0, place(2): 30.0}
    assert leaving.look(both, set(), 0.0) == frozenset()
    assert leaving.look({place(1): 30.0}, set(), 10.0) == frozenset() and leaving.next == 40.0
    assert leaving.look({place(1): 30.0}, set(), 39.0) == frozenset()
    # It comes back in time, and leaves again.
    assert leaving.look(both, set(), 39.5) == frozenset() and leaving.next is None
    assert leaving.look({place(1): 30.0}, set(), 50.0) == frozenset()
    assert leaving.look({place(1): 30.0}, set(), 80.0) == {place(2)}
    assert leaving.look({place(1): 30.0}, set(), 81.0) == frozenset()
    assert leaving.look({}, {place(1)}, 82.0) == {place(1)}
    # One that dies while it drains.
    leaving.look(both, set(), 90.0)
    leaving.look({place(1): 30.0}, set(), 91.0)
    assert leaving.look({place(1): 30.0}, {place(2)}, 92.0) == {place(2)}
