"""What the library asks about routers and floating addresses, as calls."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lamella.client import router_routes, routes
from lamella.client.calls import Call, answer
from lamella.model.errors import Invalid
from lamella.model.requests import ResourcePatch
from lamella.model.router import FloatingAddress, Router
from lamella.model.router_bodies import AddressAttach, AddressCreate, RouterCreate

_encode = msgspec.json.encode


def create(
    project: str,
    name: str,
    *,
    networks: Sequence[str],
    uplink: bool,
    ways: Mapping[str, str],
    labels: Mapping[str, str] | None,
) -> Call[Router]:
    """*ways* are addresses by the prefixes that they lead to. :raise Invalid: when there can be no such router."""
    asked = {**_spec(networks, uplink, ways), "name": name, "labels": dict(labels or {})}
    return Call(router_routes.create_router(project, _encode(_convert(asked, RouterCreate, "router"))), answer(Router))


def change(
    project: str,
    name: str,
    *,
    networks: Sequence[str] | None,
    uplink: bool | None,
    ways: Mapping[str, str] | None,
    labels: Mapping[str, str | None] | None,
) -> Call[Router]:
    """:raise Invalid: when nothing is to be changed."""
    spec = _spec(networks, uplink, ways)
    if not spec and labels is None:
        raise Invalid("there is nothing to change", hint="say what: networks, uplink, routes or labels")
    body = ResourcePatch(spec=spec or msgspec.UNSET, labels=msgspec.UNSET if labels is None else dict(labels))
    return Call(routes.patch(project, "router", name, _encode(body)), answer(Router))


def take(
    project: str, address: str, *, instance: str, network: str, name: str, labels: Mapping[str, str] | None
) -> Call[FloatingAddress]:
    """:raise Invalid: when there can be no such address."""
    asked = {"address": address, "instance": instance, "network": network, "name": name, "labels": dict(labels or {})}
    body = _convert(asked, AddressCreate, "address")
    return Call(router_routes.create_address(project, _encode(body)), answer(FloatingAddress))


def attach(project: str, name: str, instance: str) -> Call[FloatingAddress]:
    body = AddressAttach(instance=instance)
    return Call(router_routes.attach(project, name, _encode(body)), answer(FloatingAddress))


def detach(project: str, name: str) -> Call[FloatingAddress]:
    return Call(router_routes.detach(project, name), answer(FloatingAddress))


def _spec(networks: Sequence[str] | None, uplink: bool | None, ways: Mapping[str, str] | None) -> dict[str, object]:
    spec: dict[str, object] = {}
    if networks is not None:
        if isinstance(networks, str):
            raise Invalid("networks is one string", hint='give a list of names: ["front", "back"]', field="networks")
        spec["networks"] = list(networks)
    if uplink is not None:
        spec["uplink"] = uplink
    if ways is not None:
        spec["routes"] = [{"destination": prefix, "via": via} for prefix, via in ways.items()]
    return spec


def _convert(asked: Mapping[str, object], kind: Any, what: str) -> Any:
    try:
        return msgspec.convert(asked, kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"the {what} cannot be asked for: {error}") from error
