"""What the API asks of the layer about backups."""

from typing import Protocol

from lamella.model.backup import BackupPolicy
from lamella.model.backup_bodies import (
    BackupCreate,
    BackupMounted,
    BackupRestore,
    PolicyPut,
    RepositoryCreate,
    RepositoryCreated,
    RepositoryVerify,
)
from lamella.model.operation import Operation
from lamella.model.requests import Principal


class RepositoriesFace(Protocol):
    async def create(self, who: Principal, project: str, body: RepositoryCreate) -> RepositoryCreated: ...

    async def verify(
        self, who: Principal, project: str, name: str, body: RepositoryVerify, *, wait: float
    ) -> Operation: ...

    async def prune(self, who: Principal, project: str, name: str, *, wait: float) -> Operation: ...


class BackupsFace(Protocol):
    async def create(self, who: Principal, project: str, body: BackupCreate, *, wait: float) -> Operation: ...

    async def mount(self, who: Principal, project: str, name: str) -> BackupMounted: ...

    async def unmount(self, who: Principal, project: str, name: str) -> None: ...


class RestoringFace(Protocol):
    async def restore(
        self, who: Principal, project: str, name: str, body: BackupRestore, *, wait: float
    ) -> Operation: ...


class PoliciesFace(Protocol):
    async def put(self, who: Principal, project: str, body: PolicyPut) -> BackupPolicy: ...


class BackupFace(Protocol):
    """Listing, reading and removing go through the verbs that every kind has."""

    @property
    def repositories(self) -> RepositoriesFace: ...

    @property
    def backups(self) -> BackupsFace: ...

    @property
    def restoring(self) -> RestoringFace: ...

    @property
    def instances(self) -> RestoringFace: ...

    @property
    def policies(self) -> PoliciesFace: ...
