"""The rules that lead to services, put in force: what is asked is compared with what was put there, and the difference made."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lamella.host.network import state
from lamella.host.network.fabric import Fabric
from lamella.host.network.namespace import Seat
from lamella.host.network.nft import Nft
from lamella.host.network.routers.ground import inside
from lamella.host.network.services import rules
from lamella.host.network.services.rules import Doors
from lamella.model.errors import LamellaError

log = logging.getLogger("lamella.host.network")

T = TypeVar("T")


class Rules:
    """Those of one layer, in its namespace and in those of its routers."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._table = f"{fabric.table}-s"
        self._in_force: dict[Path | None, Doors] = {}

    def lost(self) -> None:
        """Nothing is known of what is in force: the next :meth:`put` makes all of it."""
        self._in_force.clear()

    async def compare(self) -> None:
        """Forget what is in force no more: somebody changed it."""
        for netns, doors in list(self._in_force.items()):
            try:
                found = await self._fabric.in_layer(
                    "read the rules of services", _visit(netns, lambda nft: _read(nft, self._table))
                )
            except LamellaError as error:
                log.warning("%s", error)
                found = Doors()
            if found != doors:
                log.warning("the rules of networks' services were changed by somebody; they are made anew")
                self._in_force.pop(netns, None)

    async def put(self, wanted: dict[Path | None, Doors]) -> bool:
        """Have exactly these rules in force, namespace by namespace; whether all are."""
        for netns in self._in_force.keys() - wanted.keys():
            self._in_force.pop(netns)
        whole = True
        for netns, doors in wanted.items():
            before = self._in_force.get(netns)
            text = rules.change(self._table, before or Doors(), doors)
            if before is None:
                text = rules.frame(self._table, netns) + text
            try:
                if text:
                    await self._fabric.in_layer("let instances reach their network's services", _runner(netns, text))
            except LamellaError as error:
                log.warning("%s", error)
                self._in_force.pop(netns, None)
                whole = False
            else:
                self._in_force[netns] = doors
        return whole


def _visit(netns: Path | None, function: Callable[[Nft], T]) -> Callable[[Seat], T]:
    """*function* with rules of the namespace at *netns*, as the layer's thread runs it."""

    def run(seat: Seat) -> T:
        if netns is None:
            return function(seat.nft)
        with inside(seat, os.open(netns, os.O_RDONLY | os.O_CLOEXEC)) as there:
            return function(there.nft)

    return run


def _runner(netns: Path | None, text: str) -> Callable[[Seat], None]:
    return _visit(netns, lambda nft: nft.run(text))


def _read(nft: Nft, table: str) -> Doors:
    containers = (("bridge", "set", "clients"), ("ip", "set", "resolvers"), ("ip", "map", "metadata"))
    found = state.entries(nft, table, containers)
    keys = {name: frozenset(_element(key, value) for _, key, value in entries) for name, entries in found.items()}
    return Doors(clients=keys["clients"], resolvers=keys["resolvers"], metadata=keys["metadata"])


def _element(key: list[str], value: list[str]) -> str:
    text = " . ".join((f'"{key[0]}"', *key[1:]))
    return f"{text} : {' . '.join(value)}" if value else text
