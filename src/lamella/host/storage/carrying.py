"""What carries volumes' content elsewhere, put together: imports and exports, moves, replicas, and the counting of their use."""

from lamella.host.storage.creating import Creating
from lamella.host.storage.moving import Moving
from lamella.host.storage.parts import Parts
from lamella.host.storage.replication.replications import Replications
from lamella.host.storage.snapshots import Snapshots
from lamella.host.storage.tiering import Access
from lamella.host.storage.transfer import Transfer


class Carrying:
    """Made with the wing; ``adopt`` comes before volumes are adopted, ``start`` after that."""

    def __init__(self, parts: Parts, creating: Creating, snapshots: Snapshots) -> None:
        self.transfer = Transfer(parts, creating)
        self.moving = Moving(parts, creating)
        self.access = Access(parts)
        self.replications = Replications(parts, creating, snapshots)

    async def adopt(self) -> None:
        """End what a crash left half done, as far as the pools at hand allow; may be called again when there are more."""
        await self.moving.recover()

    async def open(self) -> None:
        """Know what was written down: before any volume is opened."""
        self.transfer.clear()
        await self.replications.open()

    async def start(self) -> None:
        self.replications.start()
        await self.access.open()

    async def close(self) -> None:
        await self.replications.close()
        await self.access.close()
