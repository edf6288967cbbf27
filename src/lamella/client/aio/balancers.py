"""Balancers of a project: one address before many instances."""

import builtins
from collections.abc import Mapping
from typing import Unpack

from lamella.client import balancer_calls, calls
from lamella.client.aio.talk import Talk
from lamella.model.balancer import Balancer


class Balancers:
    """``layer.balancers``. ``status.backends`` says of each, by the id of the host that looked, whether it is up, and why not."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    async def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Balancer]:
        found, _ = await self._talk.find("balancer", labels)
        return found

    async def get(self, name: str) -> Balancer:
        """:raise NotFound: when there is no such balancer."""
        return await self._talk.ask(calls.get(self._talk.project, "balancer", name))

    async def create(
        self,
        name: str,
        *,
        network: str = "default",
        address: str = "",
        labels: Mapping[str, str] | None = None,
        **wishes: Unpack[balancer_calls.Wishes],
    ) -> Balancer:
        """Make one at *address*, or at a free one, of *network*: ``create("www", listen=["tcp:80"], to=["label:role=web:8080"])``.

        :raise Invalid: when a wish is not understood, or they contradict each other. :raise NotFound: when there is no such network.
        :raise Conflict: when the name, *address* or a port of a host is taken, or the network has a router.
        """
        return await self._talk.ask(
            balancer_calls.create(self._talk.project, name, wishes, network=network, address=address, labels=labels)
        )

    async def change(self, name: str, **changes: Unpack[balancer_calls.Changes]) -> Balancer:
        """What is said of it becomes so, at once: ``change("www", draining=["w1"])``. Its network and its address stay.

        :raise Invalid: when nothing is to be changed, or a change is not understood. :raise NotFound: when there is no such balancer.
        :raise Conflict: when a port of a host is taken.
        """
        return await self._talk.ask(balancer_calls.change(self._talk.project, name, changes))

    async def remove(self, name: str) -> None:
        """Remove it; its address is free at once. :raise NotFound: when there is no such balancer."""
        await self._talk.ask(calls.remove(self._talk.project, "balancer", name))
