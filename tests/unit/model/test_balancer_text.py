"""Balancers as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.model import balancer_text
from lamella.model.balancer import Check, Listener, Target
from lamella.model.errors import Invalid

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=8)


def test_what_people_write() -> None:
    assert balancer_text.listener("udp:53") == Listener(protocol="udp", port=53)
    assert balancer_text.target("w1") == Target(instance="w1")
    assert balancer_text.target("w1:8080") == Target(instance="w1", port=8080)
    assert balancer_text.target("label:role=web,tier=:8080") == Target(labels={"role": "web", "tier": ""}, port=8080)
    assert balancer_text.check("http:/healthz?full=1") == Check(kind="http", path="/healthz?full=1")
    assert balancer_text.check("http") == Check(kind="http", path="/")
    assert balancer_text.check("none").kind == "none"


@settings(deadline=None)
@given(
    st.builds(Target, instance=WORDS)
    | st.builds(Target, labels=st.dictionaries(WORDS, WORDS, min_size=1), port=st.integers(0, 65535))
)
def test_a_target_is_read_as_it_is_written(target: Target) -> None:
    assert balancer_text.target(balancer_text.format_target(target)) == target


@pytest.mark.parametrize("text", ["", "sctp:80", "tcp", "tcp:0", "tcp:70000", "tcp:x", "80"])
def test_what_nobody_can_listen_to(text: str) -> None:
    with pytest.raises(Invalid):
        balancer_text.listener(text)


@pytest.mark.parametrize("text", ["", "label:", "label:role", "label:=a", "w1:", "w1:0", "w1:http", "label:a=b:0"])
def test_nobody_to_lead_to(text: str) -> None:
    with pytest.raises(Invalid):
        balancer_text.target(text)


@pytest.mark.parametrize("text", ["", "https:/", "http:healthz", "http:/a b", "tcp:80"])
def test_no_check(text: str) -> None:
    with pytest.raises(Invalid):
        balancer_text.check(text)


def test_requests_by_host_and_path() -> None:
    assert balancer_text.route("/api=label:role=api:8080") == Target(labels={"role": "api"}, port=8080, path="/api")
    assert balancer_text.route("www.example/api=w1") == Target(instance="w1", host="www.example", path="/api")
    for text in ("www.example=w1:80", "/=w1", "a.example/b=label:c=d"):
        assert balancer_text.format_target(balancer_text.route(text)) == text
    for text in ("w1", "=w1", "WWW=w1", "/a b=w1", '/"=w1', "/api=", "-f=w1", "a.-f=w1"):
        with pytest.raises(Invalid):
            balancer_text.route(text)
