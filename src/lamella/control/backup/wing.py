"""Everything of control that has to do with backups, put together."""

from lamella.control.backup.backups import Backups
from lamella.control.backup.instances import InstanceRestoring
from lamella.control.backup.policies import Policies
from lamella.control.backup.repositories import Repositories
from lamella.control.backup.restoring import Restoring
from lamella.control.backup.state import DumpStore
from lamella.control.instances import Instances
from lamella.control.storage.wing import StorageWing
from lamella.store.store import Store


class BackupWing:
    """Its long verbs are known to *storage*'s operations from the start; ``open`` comes after *storage*'s."""

    def __init__(self, store: Store, storage: StorageWing, instances: Instances, dump: DumpStore) -> None:
        self.repositories = Repositories(store, storage.operations, storage.hosts)
        self.backups = Backups(store, storage.keeper, storage.operations, storage.hosts, self.repositories, dump)
        self.restoring = Restoring(store, storage.operations, storage.hosts, storage.volumes)
        self.instances = InstanceRestoring(
            store, storage.operations, storage.hosts, storage.volumes, self.restoring, instances
        )
        self.policies = Policies(store, self.backups, self.repositories)

    async def open(self) -> None:
        await self.backups.open()
        await self.policies.open()

    async def close(self) -> None:
        await self.policies.close()
