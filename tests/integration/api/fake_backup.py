"""Repositories, backups and policies of the layer in memory: rows that are ready as soon as they are asked for."""

from typing import Any

from fake_part import Part

from lamella.model.backup import BackupSpec, BackupStatus, PolicySpec, PolicyStatus, RepositorySpec, RepositoryStatus
from lamella.model.backup_bodies import BackupMounted, RepositoryCreated
from lamella.model.errors import Invalid
from lamella.model.ids import check_name
from lamella.model.storage import StoragePhase


class FakeBackup:
    """All four parts of the face at once; *layer* is where the rows are."""

    def __init__(self, layer: Any) -> None:
        self.repositories = Repositories(layer)
        self.backups = self.restoring = self.instances = Backups(layer)
        self.policies = Policies(layer)


class Repositories(Part):
    async def create(self, who: Any, project: str, body: Any) -> Any:
        check_name(body.name)
        spec, status = RepositorySpec(url=body.url, host=body.host), RepositoryStatus(phase=StoragePhase.READY)
        row = self.new("repository", body.name, spec, status, project, body.labels)
        return RepositoryCreated(repository=row, recovery_key="AAAA-BBBB")

    async def verify(self, who: Any, project: str, name: str, body: Any, *, wait: float) -> Any:
        self.layer._find(project, "repository", name)
        return self.operation(who, project, "verify", f"repository/{name}")

    async def prune(self, who: Any, project: str, name: str, *, wait: float) -> Any:
        self.layer._find(project, "repository", name)
        return self.operation(who, project, "prune", f"repository/{name}")


class Backups(Part):
    async def create(self, who: Any, project: str, body: Any, *, wait: float) -> Any:
        if body.volume and body.instance:
            raise Invalid("a backup is of a volume, or of an instance", field="volume")
        if body.name:
            check_name(body.name)
            spec = BackupSpec(repository=body.repository)
            self.new("backup", body.name, spec, BackupStatus(), project, body.labels)
        return self.operation(who, project, "backup", f"volume/{body.volume}")

    async def restore(self, who: Any, project: str, name: str, body: Any, *, wait: float) -> Any:
        self.layer._find(project, "backup", name)
        return self.operation(who, project, "restore-backup", f"volume/{body.name}")

    async def mount(self, who: Any, project: str, name: str) -> Any:
        self.layer._find(project, "backup", name)
        return BackupMounted(path="/run/backup", host="alpha")

    async def unmount(self, who: Any, project: str, name: str) -> None:
        self.layer._find(project, "backup", name)


class Policies(Part):
    async def put(self, who: Any, project: str, body: Any) -> Any:
        name = body.volume or "layer"
        check_name(name)
        spec = PolicySpec(volume=body.volume, repository=body.repository, every=body.every, keep=body.keep)
        for row in self.layer.rows.values():
            if (row.project, row.kind, row.name) == (project, "policy", name):
                return self.changed(row, spec=spec)
        return self.new("policy", name, spec, PolicyStatus(), project, {})
