"""Routers of a project, which join networks and lead out of them, and floating addresses, which lead from outside to an instance."""

import builtins
from collections.abc import Mapping, Sequence

from lamella.client import calls, router_calls
from lamella.client.aio.talk import Talk
from lamella.model.router import FloatingAddress, Router


class Routers:
    """``layer.routers``. Routes are addresses of its networks by the prefixes that they lead to: ``{"10.99.0.0/24": "10.10.0.5"}``."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    async def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Router]:
        found, _ = await self._talk.find("router", labels)
        return found

    async def get(self, name: str) -> Router:
        """:raise NotFound: when there is no such router."""
        return await self._talk.ask(calls.get(self._talk.project, "router", name))

    async def create(
        self,
        name: str,
        *,
        networks: Sequence[str] = (),
        uplink: bool = False,
        routes: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Router:
        """Make one that joins *networks* and, with *uplink*, leads out of them, to whatever the host reaches.

        :raise NotFound: when a network is not there. :raise Invalid: when a route leads nowhere.
        :raise Conflict: when the name is taken, *networks* overlap, or one of them has a router or a balancer.
        """
        return await self._talk.ask(
            router_calls.create(
                self._talk.project, name, networks=networks, uplink=uplink, ways=routes or {}, labels=labels
            )
        )

    async def change(
        self,
        name: str,
        *,
        networks: Sequence[str] | None = None,
        uplink: bool | None = None,
        routes: Mapping[str, str] | None = None,
        labels: Mapping[str, str | None] | None = None,
    ) -> Router:
        """Its networks, its uplink or its routes become these; ``None`` leaves them. A label that is ``None`` is taken away.

        :raise Invalid: when nothing is to be changed. :raise NotFound: when there is no such router.
        :raise Conflict: as :meth:`create`; when a network that would leave overlaps others, or floating addresses would lead nowhere.
        """
        return await self._talk.ask(
            router_calls.change(self._talk.project, name, networks=networks, uplink=uplink, ways=routes, labels=labels)
        )

    async def remove(self, name: str) -> None:
        """Its networks go on without it. :raise Conflict: when they would overlap then, or floating addresses lead by it."""
        await self._talk.ask(calls.remove(self._talk.project, "router", name))


class Addresses:
    """``layer.addresses``. The name of one is the address itself, unless it was given another."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    async def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[FloatingAddress]:
        found, _ = await self._talk.find("address", labels)
        return found

    async def get(self, name: str) -> FloatingAddress:
        """:raise NotFound: when there is no such address."""
        return await self._talk.ask(calls.get(self._talk.project, "address", name))

    async def create(
        self,
        address: str = "",
        *,
        instance: str = "",
        network: str = "",
        name: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> FloatingAddress:
        """Take *address*, or a free one, of the external *network* (left out: the only one), and have it lead to *instance* at once.

        :raise Conflict: when it is taken, there is no external network, or *instance* cannot have one.
        :raise NotFound: when *network* or *instance* is not there.
        """
        return await self._talk.ask(
            router_calls.take(self._talk.project, address, instance=instance, network=network, name=name, labels=labels)
        )

    async def attach(self, name: str, instance: str) -> FloatingAddress:
        """Have it lead to *instance*, at its first port whose network has a router with an uplink.

        :raise Conflict: when it leads to somebody already, or *instance* has no such port, or an address there.
        """
        return await self._talk.ask(router_calls.attach(self._talk.project, name, instance))

    async def detach(self, name: str) -> FloatingAddress:
        """Have it lead to nobody."""
        return await self._talk.ask(router_calls.detach(self._talk.project, name))

    async def remove(self, name: str) -> None:
        """Give it back. :raise Conflict: while it leads to somebody."""
        await self._talk.ask(calls.remove(self._talk.project, "address", name))
