"""What the library asks about firewalls, as calls. Rules are texts, as on the command line (``tcp:80,443``)."""

from collections.abc import Mapping, Sequence

import msgspec

from lamella.client import network_routes, routes
from lamella.client.calls import Call, answer
from lamella.model.errors import Invalid
from lamella.model.firewall import Firewall, Rule
from lamella.model.firewall_text import parse
from lamella.model.network_bodies import FirewallCreate, FirewallDefault, FirewallMember
from lamella.model.operation import Project
from lamella.model.requests import ResourcePatch

_encode = msgspec.json.encode


def create(
    project: str,
    name: str,
    *,
    allow: Sequence[str],
    allow_out: Sequence[str] | None,
    labels: Mapping[str, str] | None,
) -> Call[Firewall]:
    body = FirewallCreate(
        name=name, labels=dict(labels or {}), inbound=_rules(allow, "allow"), outbound=_outbound(allow_out)
    )
    return Call(network_routes.create_firewall(project, _encode(body)), answer(Firewall))


def change(
    project: str, name: str, *, allow: Sequence[str] | None, allow_out: Sequence[str] | None, all_out: bool
) -> Call[Firewall]:
    """:raise Invalid: when nothing is to be changed, or everything may go out and some things alone may."""
    spec: dict[str, object] = {}
    if all_out and allow_out is not None:
        raise Invalid("everything may go out, and some things alone may", hint="allow_out or all_out, not both")
    if allow is not None:
        spec["inbound"] = msgspec.to_builtins(_rules(allow, "allow"))
    if allow_out is not None or all_out:
        spec["outbound"] = msgspec.to_builtins(_outbound(allow_out))
    if not spec:
        raise Invalid("there is nothing to change", hint="say what: allow, allow_out or all_out")
    return Call(routes.patch(project, "firewall", name, _encode(ResourcePatch(spec=spec))), answer(Firewall))


def member(project: str, name: str, verb: str, instance: str) -> Call[Firewall]:
    """*verb* is ``attach`` or ``detach``."""
    return Call(
        network_routes.member(project, name, verb, _encode(FirewallMember(instance=instance))), answer(Firewall)
    )


def default(project: str, name: str | None) -> Call[Project]:
    return Call(
        network_routes.default_firewall(project, _encode(FirewallDefault(firewall=name or ""))), answer(Project)
    )


def _rules(texts: Sequence[str], field: str) -> list[Rule]:
    return [parse(text, field=field) for text in texts]


def _outbound(texts: Sequence[str] | None) -> list[Rule] | None:
    return None if texts is None else _rules(texts, "allow_out")
