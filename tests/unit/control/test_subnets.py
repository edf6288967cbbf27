"""Which subnets networks may have."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.control.network import subnets
from lamella.model.errors import Conflict, Invalid, NoRoom

ANY = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)


@given(ANY)
def test_a_subnet_is_taken_as_it_is_written_or_refused_with_a_way_out(subnet: IPv4Network) -> None:
    try:
        assert subnets.parse(str(subnet), IPv4Network) == subnet
    except Invalid as error:
        assert error.hint and error.field == "subnet"
        kept = [IPv4Network(text) for text in subnets.V4.kept]
        assert not 8 <= subnet.prefixlen <= 29 or any(subnet.overlaps(other) for other in kept)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10.10.0.7/24", "10.10.0.0/24"),
        ("10.10.0.0", "10.10.0.0/24"),
        ("10.10.0.0/255.255.255.0", "10.10.0.0/24"),
        ("fd10::/64", "10.10.0.0/24"),
        ("", "10.10.0.0/24"),
        ("10.10.0.0/24\n", "10.10.0.0/24"),
        ("10.10.0.0/30", "/24"),
        ("1000.1.1.0/24", "10.10.0.0/24"),
    ],
)
def test_what_is_no_subnet(text: str, hint: str) -> None:
    with pytest.raises(Invalid) as caught:
        subnets.parse(text, IPv4Network)
    assert hint in caught.value.hint


@given(st.lists(ANY, max_size=20))
def test_what_is_chosen_overlaps_nothing(taken: list[IPv4Network]) -> None:
    try:
        chosen = subnets.choose(taken)
    except NoRoom:
        assert all(any(one.overlaps(other) for other in taken) for one in subnets.CHOSEN_FROM.subnets(new_prefix=24))
        return
    subnets.check_free(chosen, [("somebody", other) for other in taken])
    assert subnets.parse(str(chosen), IPv4Network) == chosen


def test_who_has_a_subnet_is_named() -> None:
    with pytest.raises(Conflict, match=r"10\.1\.0\.0/24 overlaps 10\.1\.0\.0/16, which network back has"):
        subnets.check_free(IPv4Network("10.1.0.0/24"), [("network back", IPv4Network("10.1.0.0/16"))])
