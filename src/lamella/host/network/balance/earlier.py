"""Whom an earlier daemon left to take connections, read from what is in force: rules, and the configuration of haproxy."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec

from lamella.host.network.balance.desired import Backend, DesiredBalancer
from lamella.host.network.balance.plan import chain_name


class Led(msgspec.Struct, frozen=True):
    """``listener`` is its chain, or its frontend."""

    listener: str
    address: str
    port: int


def led(balancer: DesiredBalancer, backend: Backend) -> Led:
    """As what is in force would tell it."""
    listener = balancer.listeners[backend.listener]
    name = f"{balancer.id}_{listener.port}" if listener.reads else chain_name(balancer.id, listener)
    return Led(name, backend.address, backend.port)


def by_rules(listing: Iterable[dict[str, Any]]) -> set[Led]:
    """*listing* is the table's (libnftables-json(5))."""
    rules = [item["rule"] for item in listing if "rule" in item]
    return {Led(rule["chain"], *slot) for rule in rules for slot in _slots(rule.get("expr"))}


def _slots(part: object) -> Iterator[tuple[str, int]]:
    inner: list[object] = []
    if isinstance(part, dict):
        inner = list(cast("dict[str, object]", part).values())
    elif isinstance(part, list):
        inner = cast("list[object]", part)
    match inner:
        case [str(address), int(port)]:
            yield address, port
        case _:
            for each in inner:
                yield from _slots(each)


def by_configuration(text: str) -> set[Led]:
    """*text* is as ``http/plan.py`` writes it."""
    found: set[Led] = set()
    listener = ""
    for line in text.splitlines():
        match line.split():
            case ["backend", name]:
                listener = name.rpartition("_")[0]
            case ["server", _, place]:
                address, _, port = place.partition(":")
                found.add(Led(listener, address, int(port)))
            case _:
                pass
    return found
