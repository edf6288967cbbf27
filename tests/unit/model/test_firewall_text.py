"""Rules as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.model.errors import Invalid
from lamella.model.firewall import PortRange, Protocol, Rule
from lamella.model.firewall_text import format, parse

PORTS = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(
    lambda two: PortRange(first=min(two), last=max(two))
)
PEERS = st.sampled_from(["", "10.0.0.0/8", "192.0.2.1", "firewall:app", "firewall:a.b-c"])
RULES = st.one_of(
    st.builds(
        Rule, protocol=st.sampled_from([Protocol.TCP, Protocol.UDP]), ports=st.lists(PORTS, max_size=4), peer=PEERS
    ),
    st.builds(Rule, protocol=st.just(Protocol.ICMP), types=st.lists(st.integers(0, 255), max_size=3), peer=PEERS),
    st.builds(Rule, peer=PEERS),
)


@given(RULES, st.booleans())
def test_what_is_written_is_read_again(rule: Rule, outward: bool) -> None:
    assert parse(format(rule, outward=outward)) == rule


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_refused_with_a_way_out(text: str) -> None:
    try:
        assert parse(format(parse(text))) == parse(text)
    except Invalid as error:
        assert error.hint and error.field == "allow"


@pytest.mark.parametrize(
    "text",
    ["", "tcp:", "tcp:0", "tcp:65536", "tcp:90-80", "any:80", "gre", "from=:tcp", "icmp:300", "tcp:1-2-3", "tcp:²"],
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)
