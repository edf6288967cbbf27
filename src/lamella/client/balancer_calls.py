"""What the library asks about balancers, as calls. What they listen to and lead to are texts, as on the command line."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import msgspec

from lamella.client import network_routes, routes, wish
from lamella.client.calls import Call, answer
from lamella.model import balancer_text
from lamella.model.balancer import Balancer
from lamella.model.errors import Invalid
from lamella.model.network_bodies import BalancerCreate
from lamella.model.requests import ResourcePatch

Spread = Literal["turn", "source"]


class Wishes(TypedDict, total=False):
    """What may be said of a balancer.

    ``listen`` is what it listens to (``tcp:80``, ``udp:53``, ``http:80``, ``https:443``), ``to`` whom it leads to (``label:role=web:8080``,
    ``w1``), ``routes`` whom requests lead to (``/api=label:role=api:8080``, ``www.example/shop=w7``), ``certificate`` a file of the
    hosts, in PEM, for https. ``check`` is how it is told that a backend lives (``tcp``, ``http:/healthz``, ``none``), ``check_port``
    where (0: where it serves), every ``interval`` seconds. ``spread`` is ``turn``, or ``source``: by the client's address. ``publish`` are
    ports of the host (``8080:80``), ``drain`` the seconds that connections to a backend that leaves have to end.
    """

    listen: Sequence[str]
    to: Sequence[str]
    routes: Sequence[str]
    certificate: str
    check: str
    check_port: int
    interval: float
    spread: Spread
    publish: Sequence[str]
    drain: float


class Changes(Wishes, total=False):
    """What may be changed of one: each replaces what was, and either of ``to`` and ``routes`` replaces both.

    ``draining`` are the names of the instances that get no new connection; ``None`` takes a label away."""

    draining: Sequence[str]
    labels: Mapping[str, str | None]


def create(
    project: str, name: str, wishes: Wishes, *, network: str, address: str, labels: Mapping[str, str] | None
) -> Call[Balancer]:
    """:raise Invalid: when a wish is not understood, or it listens to nothing."""
    if not wishes.get("listen"):
        raise Invalid("a balancer listens to something", hint='say what: listen=["tcp:80"]', field="listen")
    asked = {"name": name, "network": network, "address": address, "labels": dict(labels or {}), **_spec(wishes)}
    try:
        body = msgspec.convert(asked, BalancerCreate)
    except msgspec.ValidationError as error:
        raise Invalid(f"the balancer cannot be asked for: {error}") from error
    return Call(network_routes.create_balancer(project, msgspec.json.encode(body)), answer(Balancer))


def change(project: str, name: str, changes: Changes) -> Call[Balancer]:
    """:raise Invalid: when nothing is to be changed, or a change is not understood."""
    if not changes:
        raise Invalid("there is nothing to change", hint='say what: to=["label:role=web"], draining=["w1"]')
    spec = _spec(changes)
    if "draining" in changes:
        spec["draining"] = _texts(changes["draining"], "draining")
    labels = dict(changes["labels"]) if "labels" in changes else msgspec.UNSET
    body = ResourcePatch(spec=spec or msgspec.UNSET, labels=labels)
    return Call(routes.patch(project, "balancer", name, msgspec.json.encode(body)), answer(Balancer))


def _spec(wishes: Wishes | Changes) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if "listen" in wishes:
        spec["listeners"] = [balancer_text.listener(text) for text in _texts(wishes["listen"], "listen")]
    if "to" in wishes or "routes" in wishes:
        ways, rest = _texts(wishes.get("routes", ()), "routes"), _texts(wishes.get("to", ()), "to")
        spec["targets"] = [*map(balancer_text.route, ways), *map(balancer_text.target, rest)]
    check: dict[str, Any] = {}
    if "check" in wishes:
        how = balancer_text.check(wishes["check"])
        check |= {"kind": how.kind, "path": how.path}
    if "check_port" in wishes:
        check["port"] = wishes["check_port"]
    if "interval" in wishes:
        check |= {"interval": wishes["interval"], "timeout": wishes["interval"]}
    if check:
        spec["check"] = check
    if "publish" in wishes:
        spec["publish"] = [wish.publish(text) for text in _texts(wishes["publish"], "publish")]
    given: dict[str, Any] = {**wishes}
    spec |= {field: given[field] for field in ("certificate", "spread", "drain") if field in given}
    return msgspec.to_builtins(spec)


def _texts(given: Sequence[str], field: str) -> list[str]:
    """:raise Invalid: when *given* is one text, whose letters nobody means."""
    if isinstance(given, str):
        raise Invalid(f"{field} is one string", hint=f'give a list of texts: {field}=["…"]', field=field)
    return list(given)
