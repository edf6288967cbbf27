"""Everything of control that has to do with storage, put together."""

from lamella.control.bulletin import Bulletin
from lamella.control.instances import Instances
from lamella.control.replication import Replications
from lamella.control.storage.asking import Hosts
from lamella.control.storage.inspection import Inspection
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.keys import Keys
from lamella.control.storage.operations import Operations
from lamella.control.storage.passing import Passing
from lamella.control.storage.pools import Pools
from lamella.control.storage.snapshots import Snapshots
from lamella.control.storage.transferring import Transferring
from lamella.control.storage.volumes import Volumes
from lamella.control.tiering import Tiering
from lamella.store.store import Store


class StorageWing:
    """Further long verbs are added to :attr:`operations` before :meth:`open`."""

    def __init__(self, store: Store, bulletin: Bulletin, hosts: Hosts, instances: Instances) -> None:
        self.hosts = hosts
        self.keeper = Keeper(store)
        self.operations = Operations(store, bulletin)
        self.pools = Pools(store, self.keeper, self.operations, hosts)
        self.volumes = Volumes(store, self.keeper, self.operations, hosts, instances)
        self.keys = Keys(store, self.keeper, hosts)
        self.snapshots = Snapshots(store, self.keeper, self.operations, hosts)
        self.passing = Passing(store, bulletin, self.keeper)
        self.inspection = Inspection(store, self.operations, hosts)
        self.transferring = Transferring(store, self.keeper, self.operations, hosts)
        self.replications = Replications(store, hosts)
        self.tiering = Tiering(store, hosts, self.transferring)

    async def open(self) -> None:
        """Go on where a former daemon was."""
        await self.keeper.open()
        await self.inspection.open()
        await self.operations.open()
        await self.passing.open()
        await self.replications.open()
        await self.tiering.open()

    async def close(self) -> None:
        await self.tiering.close()
        await self.replications.close()
        await self.passing.close()
        await self.operations.close()
        await self.inspection.close()
        await self.keeper.close()
