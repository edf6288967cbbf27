"""Backups of several projects: who may put what into whose repository."""

from typing import Any

import pytest
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.backup import BackupSource, Retention
from lamella.model.backup_bodies import BackupCreate, PolicyPut, RepositoryCreate, RepositoryVerify
from lamella.model.errors import Conflict, NotFound
from lamella.model.operation import Operation, OperationPhase, ProjectSpec, ProjectStatus
from lamella.model.requests import Principal
from lamella.model.resource import new_resource
from lamella.model.storage import VolumeSpec
from lamella.model.storage_bodies import VolumeCreate

WHO = Principal(name="unix:root", admin=True)
WAIT = 90.0


@pytest.fixture(autouse=True)
def no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's dump is another test's."""

    async def dump() -> bytes:
        return b"the store"

    monkeypatch.setattr("lamella.control.layer.dump_of", lambda _: dump)


@pytest.fixture
async def team(layer: Layer) -> Layer:
    """With a project ``team`` that has a repository ``theirs``, beside the layer's own ``vault``."""
    project = new_resource("project", "team", ProjectSpec(), ProjectStatus())
    await layer.store.write(lambda tx: tx.insert(project))
    for where, name in (("default", "vault"), ("team", "theirs")):
        await layer.backup.repositories.create(WHO, where, RepositoryCreate(name=name, url=f"/mnt/{name}"))
        body = VolumeCreate(name="data", spec=VolumeSpec(size=1 << 30))
        await layer.storage.volumes.create(WHO, where, body, wait=WAIT)
    return layer


async def back_up(layer: Layer, project: str, repository: str, **of: str) -> Operation:
    made = await layer.backup.backups.create(WHO, project, BackupCreate(repository=repository, **of), wait=WAIT)
    assert made.status.phase is OperationPhase.DONE, made.status
    return made


async def backups(layer: Layer) -> list[tuple[str, str, BackupSource]]:
    rows: list[Any] = (await layer.store.list("backup")).items
    return sorted((row.project, row.spec.repository_name, row.spec.of) for row in rows)


async def test_the_layer_s_state_goes_into_no_project_s_repository(team: Layer, host: StorageHost) -> None:
    await back_up(team, "team", "theirs", volume="data")
    assert await backups(team) == [("team", "theirs", BackupSource.VOLUME)]
    for project, repository in (("team", "theirs"), ("team", "vault")):
        with pytest.raises(Conflict, match="project default"):
            await team.backup.backups.create(WHO, project, BackupCreate(repository=repository), wait=WAIT)
        policy = PolicyPut(repository=repository, every=3600, keep=Retention(daily=7))
        with pytest.raises(Conflict, match="project default"):
            await team.backup.policies.put(WHO, project, policy)
    # Into the layer's own it goes along, and is the layer's.
    await back_up(team, "team", "vault", volume="data")
    await back_up(team, "default", "vault")
    assert await backups(team) == [
        ("default", "vault", BackupSource.LAYER),
        ("default", "vault", BackupSource.LAYER),
        ("team", "theirs", BackupSource.VOLUME),
        ("team", "vault", BackupSource.VOLUME),
    ]
    assert host.asked.count("BackUpLayer") == 2


async def test_the_layer_s_repository_is_used_from_projects_and_looked_after_in_its_own(team: Layer) -> None:
    repositories = team.backup.repositories
    for verb in (
        repositories.verify(WHO, "team", "vault", RepositoryVerify(), wait=0),
        repositories.prune(WHO, "team", "vault", wait=0),
        repositories.delete(WHO, "team", "vault", force=True),
    ):
        with pytest.raises(NotFound) as refused:
            await verb
        assert "project default" in refused.value.hint
    policy = PolicyPut(repository="vault", volume="data", every=3600, keep=Retention(daily=7))
    assert (await team.backup.policies.put(WHO, "team", policy)).spec.repository_name == "vault"
    verified = await repositories.verify(WHO, "default", "vault", RepositoryVerify(), wait=WAIT)
    assert verified.status.phase is OperationPhase.DONE
