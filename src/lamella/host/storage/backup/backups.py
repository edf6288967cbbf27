"""Backups of one host: what answers control's requests about them, and what is tidied at every start."""

from pathlib import Path

from lamella.host.linux import mounts
from lamella.host.linux.blocking import blocking
from lamella.host.linux.processes import marked
from lamella.host.storage.backup.keeping import Keeping
from lamella.host.storage.backup.mounting import Mounting, end_leftovers
from lamella.host.storage.backup.repositories import Repositories
from lamella.host.storage.backup.restoring import Restoring
from lamella.host.storage.backup.storing import Storing
from lamella.host.storage.backup.together import Together
from lamella.host.storage.backup.verifying import Verifying
from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.host.storage.snapshots import Snapshots
from lamella.model import backup_requests as requests


class Backups:
    """Registers itself with ``parts.requests``."""

    def __init__(self, parts: Parts, snapshots: Snapshots) -> None:
        self._parts = parts
        self.repositories = Repositories(parts.home, parts.stacks.keys)
        self.storing = Storing(parts, self.repositories)
        self.keeping = Keeping(parts, snapshots)
        Together(parts, snapshots, self.keeping)
        self.restoring = Restoring(parts, self.repositories, self.keeping)
        self.verifying = Verifying(parts.home, self.repositories)
        self.mounting = Mounting(parts, self.repositories)
        serve = parts.requests.serve
        serve(requests.OpenRepository, self.repositories.open)
        serve(requests.ListRepository, self.repositories.stored)
        serve(requests.BackUp, self.storing.back_up)
        serve(requests.BackUpLayer, self.storing.back_up_layer)
        serve(requests.BackUpInstance, self.storing.back_up_instance)
        serve(requests.ReadInstance, self.storing.read_instance)
        serve(requests.RestoreBackup, self.restoring.restore)
        serve(requests.VerifyBackups, self.verifying.verify)
        serve(requests.ForgetBackups, self._forget)
        serve(requests.MountBackup, self.mounting.mount)
        serve(requests.UnmountBackup, self.mounting.unmount)

    async def open(self) -> None:
        """End what a former daemon left half done; what shows a backup to a person stays."""
        home = self._parts.home
        place = home.run / "backup"
        spare = await self.mounting.live()
        await blocking(lambda: end_leftovers(home, spare, marked(home.mark)))
        await self.mounting.sweep()

        def tidy() -> None:
            for entry in mounts.below(place):
                if not entry.point.startswith(f"{place}/mounts/"):
                    mounts.release(Path(entry.point))
            if self.repositories.places.work.exists():
                for path in self.repositories.places.work.iterdir():
                    if path.is_file():
                        path.unlink(missing_ok=True)

        await blocking(tidy)
        await self.keeping.open()

    async def close(self) -> None:
        await self.keeping.close()

    async def _forget(self, request: requests.ForgetBackups, tell: Tell) -> None:
        await self.verifying.forget(request, tell)
        for backup in request.backups:
            await self.storing.forget(backup)
