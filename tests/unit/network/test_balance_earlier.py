"""Whom what is in force leads to, read back as it was written."""

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lamella.host.network.balance import plan
from lamella.host.network.balance.desired import Backend, DesiredBalancer, Rule
from lamella.host.network.balance.earlier import Led, by_configuration, by_rules, led
from lamella.host.network.balance.http.plan import Place, configuration
from lamella.model.balancer import Listener

LISTENERS = [Listener(port=80), Listener(protocol="udp", port=53), Listener(protocol="http", port=8080)]
BACKENDS = [
    Backend(listener=place, instance="", name=f"w{n}", address=f"10.0.0.{n}", port=9000, rule=Rule(path=path))
    for place, path in ((0, ""), (1, ""), (2, ""), (2, "/api"))
    for n in (2, 3)
]
BALANCER = DesiredBalancer(
    id="bal_1", name="www", network="net", address="10.0.0.100", listeners=LISTENERS, backends=BACKENDS
)


def lives(_: str, backend: Backend) -> bool:
    return backend.name == "w2"


def expected(*, reads: bool) -> set[Led]:
    return {led(BALANCER, one) for one in BACKENDS if lives("", one) and LISTENERS[one.listener].reads == reads}


def test_haproxy() -> None:
    place = Place(room=Path("/run/room"), pidfile=Path("/run/pid"), connections=8000)
    assert by_configuration(configuration([BALANCER], lives, {}, place)) == expected(reads=True)
    assert by_configuration("") == set()


@pytest.mark.root
def test_rules() -> None:
    text = plan.frame("t", "up") + plan.change("t", plan.Balanced(), plan.balanced([BALANCER], {}, lives))
    words = ["unshare", "--net", "sh", "-c", "nft -f - && nft -j list table ip t"]
    done = subprocess.run(words, input=text, check=True, capture_output=True, text=True, timeout=90)
    listing = msgspec.json.decode(done.stdout, type=dict[str, list[dict[str, Any]]])["nftables"]
    assert by_rules(listing) == expected(reads=False)
    assert by_rules([]) == set()
