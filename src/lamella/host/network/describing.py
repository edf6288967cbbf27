"""What the rules say of networks: whether they go out, and who is a neighbour, in both families."""

from collections.abc import Awaitable, Callable, Iterable

from lamella.host.network import plan, state
from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.fabric import Fabric, rules_refused
from lamella.host.network.plan import Element
from lamella.host.network.routers.flows import end_outgoing
from lamella.host.network.six.dual_stack import DualStack
from lamella.model.errors import Unavailable


class Descriptions:
    """``by_network`` are the elements of IPv4 in force, by the network's id. *restore* puts every rule in force that is remembered."""

    def __init__(self, fabric: Fabric, six: DualStack, restore: Callable[[], Awaitable[None]]) -> None:
        self.by_network: dict[str, list[Element]] = {}
        self._fabric = fabric
        self._six = six
        self._restore = restore

    def recall(self, layer: dict[str, list[state.Entry]]) -> None:
        """What an earlier daemon left in the *layer*'s rules."""
        self.by_network = state.networks(layer)

    def remember(self, networks: Iterable[DesiredNetwork]) -> None:
        """Exactly these are to be in force; restoring puts them there."""
        self.by_network = {network.id: plan.of_network(network) for network in networks}

    async def say(self, network: DesiredNetwork) -> None:
        """Have exactly what *network* is in force; what leaves it ends, when it is isolated from now on."""
        wanted, before = plan.of_network(network), self.by_network.get(network.id, [])
        await self._have(network.id, wanted)
        await self._have_six(network.id, network)
        if before and any(element.container == "isolated" for element in wanted if element not in before):
            await self._fabric.in_layer(f"end what leaves network {network.name}", lambda _: end_outgoing(network))

    async def forget(self, id: str) -> None:
        """Have nothing in force of the network with this id."""
        await self._have(id, [])
        await self._have_six(id, None)

    async def _have(self, id: str, wanted: list[Element]) -> None:
        table, old = self._fabric.table, self.by_network.pop(id, [])
        if wanted:
            self.by_network[id] = wanted
        try:
            await self._fabric.change_layer(
                [
                    *plan.remove(table, [element for element in old if element not in wanted]),
                    *plan.add(table, [element for element in wanted if element not in old]),
                ]
            )
        except Unavailable as error:
            if not rules_refused(error):
                raise
            await self._restore()

    async def _have_six(self, id: str, network: DesiredNetwork | None) -> None:
        try:
            await self._six.describe(id, network)
        except Unavailable as error:
            if not rules_refused(error):
                raise
            await self._restore()
            await self._six.describe(id, network)
