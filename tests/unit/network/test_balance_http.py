"""The configuration of haproxy: who listens, who gets which requests, and nothing of what it should not say."""

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.network.balance.desired import Backend, DesiredBalancer, Rule
from lamella.host.network.balance.http.plan import Place, configuration
from lamella.model.balancer import Listener

PLACE = Place(room=Path("/run/room"), pidfile=Path("/run/pid"), connections=8000)
RULES = [
    Rule(),
    Rule(path="/api"),
    Rule(path="/api/v1"),
    Rule(host="a.example"),
    Rule(host="a.example", path="/api"),
]


def balancer(rules: list[Rule], *listeners: Listener, draining: bool = False) -> DesiredBalancer:
    backends = [
        Backend(
            listener=0, instance="", name=f"w{n}", address=f"10.0.0.{n + 2}", port=8080, rule=rule, draining=draining
        )
        for n, rule in enumerate(rules)
    ]
    return DesiredBalancer(
        id="bal_1", name="www", network="net", address="10.0.0.100", listeners=list(listeners), backends=backends
    )


def decided(text: str, host: str, path: str) -> str:
    """Which backend haproxy would take, by its rules in their order: the address of its first server."""
    chosen = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["default_backend"]:
            chosen = chosen or words[1]
        if words[:1] != ["use_backend"] or chosen:
            continue
        for all_of in line.partition(" if ")[2].split(" or "):
            tests = re.findall(r"\{ (\S+) (?:-i -- )?(\S+) \}", all_of)
            fits = {
                "hdr(host),host_only": lambda value: host == value,
                "path": lambda value: path == value,
                "path_beg": lambda value: path.startswith(value),
            }
            if all(fits[what](value) for what, value in tests):
                chosen = words[1]
    section = text.partition(f"\nbackend {chosen}\n")[2] if chosen else ""
    found = re.search(r"server (\S+):8080", section)
    return found[1] if found else ""


def expected(rules: list[Rule], host: str, path: str) -> str:
    def fits(rule: Rule) -> bool:
        prefix = rule.path.rstrip("/")
        return rule.host in ("", host) and (path == prefix or path.startswith(f"{prefix}/"))

    able = [(bool(rule.host), len(rule.path), -place) for place, rule in enumerate(rules) if fits(rule)]
    if not able:
        return ""
    best = rules[-max(able)[2]]
    return f"10.0.0.{rules.index(best) + 2}"


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(RULES), unique=True),
    st.sampled_from(["a.example", "b.example"]),
    st.sampled_from(["/", "/api", "/api/", "/api/v1", "/api/v1/x", "/apix", "/api/v12"]),
)
def test_the_most_particular_rule_decides(rules: list[Rule], host: str, path: str) -> None:
    text = configuration([balancer(rules, Listener(protocol="http", port=80))], lambda *_: True, {}, PLACE)
    assert decided(text, host, path) == expected(rules, host, path)


def test_only_http_is_its_and_only_who_lives_is_in_it() -> None:
    http, tcp, https = Listener(protocol="http", port=80), Listener(port=81), Listener(protocol="https", port=443)
    assert configuration([balancer([Rule()], tcp)], lambda *_: True, {}, PLACE) == ""
    text = configuration([balancer([Rule()], http, tcp, https)], lambda *_: True, {}, PLACE)
    assert "10.0.0.100:80\n" in text and ":81" not in text and ":443" not in text  # it has no certificate
    text = configuration([balancer([Rule()], http, https)], lambda *_: True, {"bal_1": Path("/etc/www.pem")}, PLACE)
    assert "bind 10.0.0.100:443 ssl crt /etc/www.pem " in text
    for each, up in ((balancer([Rule()], http), False), (balancer([Rule()], http, draining=True), True)):
        text = configuration([each], lambda *_, up=up: up, {}, PLACE)
        assert "bind 10.0.0.100:80\n" in text and "server 10" not in text


def test_what_a_client_says_of_itself_is_forgotten_first() -> None:
    text = configuration([balancer([Rule()], Listener(protocol="http", port=80))], lambda *_: True, {}, PLACE)
    first = text.index("bind 10.0.0.100:80\n")
    for name in ("X-Forwarded-For", "Forwarded"):
        assert first < text.index(f"http-request del-header {name}\n") < text.index("set-header X-Forwarded-Proto")


def test_a_host_is_no_option_and_nobody_has_all_connections() -> None:
    text = configuration([balancer([Rule(host="-f")], Listener(protocol="http", port=80))], lambda *_: True, {}, PLACE)
    assert "-i -- -f }" in text
    frame, _, defaults = text.partition("defaults\n")
    assert "maxconn 8000\n" in frame and "maxconn 2000\n" in defaults
