"""Repositories, backups and policies: made, verified, restored, shown."""

from typing import Any
from urllib.parse import quote

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.api.routes.pools import operation
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

REPOSITORIES = "/v1/projects/{project:str}/repositories"
BACKUPS = "/v1/projects/{project:str}/backups"
POLICIES = "/v1/projects/{project:str}/policies"


async def create_repository(call: Call[Any]) -> answer.Answer:
    made = await call.layer.backup.repositories.create(call.who, call.project, await call.body(RepositoryCreate))
    location = f"{call.path}/{quote(made.repository.name)}"
    # The one answer that has the recovery key.
    return answer.json(made, status=201, headers={"location": location, "cache-control": "no-store"})


async def verify(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(RepositoryVerify, default=RepositoryVerify())
    repositories = call.layer.backup.repositories
    return operation(await repositories.verify(call.who, call.project, call.name, body, wait=call.query.wait))


async def prune(call: Call[WriteQuery]) -> answer.Answer:
    repositories = call.layer.backup.repositories
    return operation(await repositories.prune(call.who, call.project, call.name, wait=call.query.wait))


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(BackupCreate)
    return operation(await call.layer.backup.backups.create(call.who, call.project, body, wait=call.query.wait))


async def restore(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(BackupRestore)
    restoring = call.layer.backup.instances if body.instance else call.layer.backup.restoring
    return operation(await restoring.restore(call.who, call.project, call.name, body, wait=call.query.wait))


async def mount(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.backup.backups.mount(call.who, call.project, call.name))


async def unmount(call: Call[Any]) -> answer.Answer:
    await call.layer.backup.backups.unmount(call.who, call.project, call.name)
    return answer.nothing()


async def put_policy(call: Call[Any]) -> answer.Answer:
    body = await call.body(PolicyPut)
    return answer.resource(await call.layer.backup.policies.put(call.who, call.project, body))


_OPERATION = Success(status=202, type=Operation, etag=True)

ROUTES: list[AnyRoute] = [
    change(
        "repository",
        REPOSITORIES,
        "createRepository",
        "Make a repository; the answer alone has its recovery key",
        create_repository,
        action=Action.ADMINISTER,
        body=RepositoryCreate,
        answers=Success(status=201, type=RepositoryCreated),
    ),
    change(
        "repository",
        REPOSITORIES + "/{name:str}/verify",
        "verifyRepository",
        "Check a repository and restore samples; answers with the operation that does it",
        verify,
        action=Action.ADMINISTER,
        query=WriteQuery,
        body=RepositoryVerify,
        body_optional=True,
        answers=_OPERATION,
    ),
    change(
        "repository",
        REPOSITORIES + "/{name:str}/prune",
        "pruneRepository",
        "Forget what no policy keeps and give back its room; answers with the operation that does it",
        prune,
        action=Action.ADMINISTER,
        query=WriteQuery,
        answers=_OPERATION,
    ),
    change(
        "backup",
        BACKUPS,
        "createBackup",
        "Back up a volume, an instance's volumes, or the layer's state; answers with the operation that does it",
        create,
        action=Action.ADMINISTER,
        query=WriteQuery,
        body=BackupCreate,
        answers=_OPERATION,
    ),
    change(
        "backup",
        BACKUPS + "/{name:str}/restore",
        "restoreBackup",
        "Restore a backup into a volume or an instance; answers with the operation that does it",
        restore,
        action=Action.ADMINISTER,
        query=WriteQuery,
        body=BackupRestore,
        answers=_OPERATION,
    ),
    change(
        "backup",
        BACKUPS + "/{name:str}/mount",
        "mountBackup",
        "Show a backup's files in a directory of the host, read-only",
        mount,
        action=Action.ADMINISTER,
        answers=Success(type=BackupMounted),
    ),
    change(
        "backup",
        BACKUPS + "/{name:str}/unmount",
        "unmountBackup",
        "End that",
        unmount,
        action=Action.ADMINISTER,
        answers=Success(status=204),
    ),
    change(
        "policy",
        POLICIES,
        "putPolicy",
        "Set how a volume is backed up by itself",
        put_policy,
        action=Action.ADMINISTER,
        body=PolicyPut,
        answers=Success(type=BackupPolicy, etag=True),
    ),
]
