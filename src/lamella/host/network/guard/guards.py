"""The firewalls of both families: a guard for each, told the same."""

from collections.abc import Iterable, Mapping

from lamella.host.network.driver import DesiredPort
from lamella.host.network.fabric import Fabric
from lamella.host.network.guard.family import IPV4, IPV6
from lamella.host.network.guard.guard import Guard
from lamella.model.firewall import FirewallSpec
from lamella.model.host import Capability


class Guards:
    def __init__(self, fabric: Fabric) -> None:
        self.four = Guard(fabric, IPV4)
        self.six = Guard(fabric, IPV6)

    @property
    def begun(self) -> bool:
        """Whether this process put any in force."""
        return self.four.in_force is not None

    def guards(self, port: DesiredPort) -> bool:
        """Whether everything that *port* asks for is in force."""
        return self.four.guards(port) and self.six.guards(port)

    async def protect(self, firewalls: Mapping[str, FirewallSpec], ports: Iterable[DesiredPort]) -> None:
        """As :meth:`Guard.protect`, one family after the other."""
        every = list(ports)
        await self.four.protect(firewalls, every)
        await self.six.protect(firewalls, every)

    def places(self) -> dict[str, int]:
        """How many places are guarded, by the table and family of their rules; none where there are none."""
        found = {guard: guard.in_force for guard in (self.four, self.six)}
        return {guard.table: len(force.inward) for guard, force in found.items() if force is not None and force.inward}

    def lost(self) -> None:
        """As :meth:`Guard.lost`."""
        self.four.lost()
        self.six.lost()

    def finding(self) -> Capability:
        return self.four.finding()
