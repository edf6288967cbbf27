"""What dnsmasq is told, and the rules that lead to it: values alone."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.network.driver import DesiredNetwork, DesiredPort, Resident
from lamella.host.network.services import rules
from lamella.host.network.services.plan import HOSTS, LEASES, SERVERS, Site, label, service
from lamella.host.network.services.rules import Doors
from lamella.model.ids import new_id

NETWORKS = [
    DesiredNetwork(id=new_id("network"), name=name, subnet=f"10.9.{number}.0/24", gateway=f"10.9.{number}.1", mtu=1500)
    for number, name in enumerate(("front", "back_1"))
]
SITE = Site(interface="lamexample", gateway="10.9.0.1")
names = st.text("az09._-", max_size=12).map(lambda middle: f"a{middle}9")


@st.composite
def residents(draw: st.DrawFn) -> list[Resident]:
    numbers = draw(st.sets(st.integers(2, 200), max_size=8))
    found: list[Resident] = []
    for number in sorted(numbers):
        which = draw(st.integers(0, 1))
        port = DesiredPort(
            id=new_id("port"),
            network=NETWORKS[which].id,
            address=f"10.9.{which}.{number}/24",
            mac=f"02:00:00:00:0{which}:{number:02x}",
            publish=[],
        )
        found.append(Resident(port=port, name=tuple(draw(st.lists(names, min_size=1, max_size=2)))))
    return found


@given(residents(), st.integers(0, 1), st.randoms(use_true_random=False))
def test_everybody_on_the_network_is_told_once_and_nobody_else(
    known: list[Resident], which: int, random: object
) -> None:
    network = NETWORKS[which]
    made = service(network, SITE, known, ["192.0.2.1"])
    here = {one.port.address.partition("/")[0] for one in known if one.port.network == network.id}
    hosts = [line.split() for line in made.files[HOSTS].splitlines()]
    leases = [line.split(",") for line in made.files[LEASES].splitlines()]
    assert sorted(words[0] for words in hosts) == sorted(words[1] for words in leases) == sorted(here)
    assert all(IPv4Address(words[0]) in IPv4Network(network.subnet) for words in hosts)
    # What is asked in another order is the same: nothing is told anew.
    random.shuffle(known)  # type: ignore[attr-defined]
    assert service(network, SITE, known, ["192.0.2.1"]) == made


@given(names)
def test_a_name_is_a_label(name: str) -> None:
    found = label(name)
    assert 0 < len(found) <= 63 and found.replace("-", "a").isalnum()
    assert not found.startswith("-") and not found.endswith("-")


@pytest.mark.parametrize("name", ["ignore", "infinite", "42", "5d", "12h", "9W"])
def test_a_name_that_means_something_in_a_lease_is_not_in_it(name: str) -> None:
    port = DesiredPort(
        id=new_id("port"), network=NETWORKS[0].id, address="10.9.0.7/24", mac="02:00:00:00:00:07", publish=[]
    )
    named, other = (
        service(NETWORKS[0], SITE, [Resident(port=port, name=(each,))], []).files for each in (name, f"{name}x")
    )
    assert named[LEASES] == "02:00:00:00:00:07,10.9.0.7,1h\n"
    assert other[LEASES] == f"02:00:00:00:00:07,10.9.0.7,{name.lower()}x,1h\n"
    assert named[HOSTS] == f"10.9.0.7 {name.lower()}.front.internal {name.lower()}\n"


def test_an_instance_of_another_project_takes_nobodys_name() -> None:
    port = DesiredPort(
        id=new_id("port"), network=NETWORKS[0].id, address="10.9.0.7/24", mac="02:00:00:00:00:07", publish=[]
    )
    made = service(NETWORKS[0], SITE, [Resident(port=port, name=("web", "dev"))], [])
    assert made.files[HOSTS] == "10.9.0.7 web.dev.front.internal\n"


def test_where_nothing_goes_out_nobody_is_asked() -> None:
    network, shut = NETWORKS[0], Site(interface=SITE.interface, gateway=SITE.gateway, outside=False)
    assert service(network, shut, [], ["192.0.2.1"]).files[SERVERS] == ""
    assert service(network, SITE, [], ["192.0.2.1"]).files[SERVERS] == "server=192.0.2.1\n"
    # What is read again changes, not what is started.
    assert service(network, shut, [], []).arguments == service(network, SITE, [], []).arguments


elements = st.frozensets(st.sampled_from(["a", "b", "c", "d"]))


places = st.builds(Doors, clients=elements, resolvers=elements, metadata=elements)


@given(places, places)
def test_a_change_leads_from_one_to_the_other(before: Doors, after: Doors) -> None:
    now = {"clients": set(before.clients), "resolvers": set(before.resolvers), "metadata": set(before.metadata)}
    for line in rules.change("t", before, after).splitlines():
        verb, _, _, _, name, *words = line.split()
        for word in "".join(words).strip("{}").split(","):
            if verb == "add":
                assert word not in now[name]
                now[name].add(word)
            else:
                now[name].remove(word)
    assert Doors(**{name: frozenset(found) for name, found in now.items()}) == after
