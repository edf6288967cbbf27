"""Questions of the library about repositories, backups and policies as :class:`Call`."""

import os
from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

from lamella.client import backup_routes
from lamella.client.call import Call, answer, nothing
from lamella.model.backup import BackupPolicy, Credentials, Retention
from lamella.model.backup_bodies import (
    BackupCreate,
    BackupMounted,
    BackupRestore,
    PolicyPut,
    RepositoryCreate,
    RepositoryCreated,
    RepositoryVerify,
)
from lamella.model.errors import Invalid
from lamella.model.operation import Operation
from lamella.model.quantity import parse_duration

_encode = msgspec.json.Encoder().encode


class Keeps(TypedDict, total=False):
    """How many backups a policy keeps: the newest ``last``, and the newest of so many hours, days, weeks and months."""

    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int


def create_repository(
    project: str, name: str, to: str, *, recovery_key: str, host: str, credentials: Credentials | None
) -> Call[RepositoryCreated]:
    """*to* is a directory of the host, or a URL."""
    body = {
        "name": name,
        "url": os.path.abspath(to) if "://" not in to else to,  # noqa: PTH100
        "host": host,
        "credentials": credentials or Credentials(),
        "recovery_key": recovery_key,
    }
    return Call(
        backup_routes.create_repository(project, _body(body, RepositoryCreate, "repository")), answer(RepositoryCreated)
    )


def verify(project: str, name: str, backups: list[str], *, full: bool) -> Call[Operation]:
    body = _encode(RepositoryVerify(share=100 if full else 10, backups=backups))
    return Call(backup_routes.repository_verb(project, name, "verify", body), answer(Operation))


def prune(project: str, name: str) -> Call[Operation]:
    return Call(backup_routes.repository_verb(project, name, "prune"), answer(Operation))


def create(
    project: str, repository: str, of: str, *, instance: bool, name: str, consistent: bool, labels: Mapping[str, str]
) -> Call[Operation]:
    """*of* is a volume or an instance; empty: the layer's own state."""
    subject = {"instance" if instance else "volume": of}
    body = {"repository": repository, "name": name, "consistent": consistent, "labels": dict(labels), **subject}
    return Call(backup_routes.create(project, _body(body, BackupCreate, "backup")), answer(Operation))


def restore(
    project: str, name: str, new: str, *, instance: bool, pool: str, force: bool, passphrase: str
) -> Call[Operation]:
    body = {"name": new, "pool": pool, "force": force, "instance": instance, "passphrase": passphrase}
    return Call(backup_routes.verb(project, name, "restore", _body(body, BackupRestore, "restore")), answer(Operation))


def mount(project: str, name: str) -> Call[BackupMounted]:
    return Call(backup_routes.verb(project, name, "mount"), answer(BackupMounted))


def unmount(project: str, name: str) -> Call[None]:
    return Call(backup_routes.verb(project, name, "unmount"), nothing)


def put_policy(
    project: str, volume: str, repository: str, every: float | str | None, verify: float | str, keep: Keeps
) -> Call[BackupPolicy]:
    """Times are seconds, or ``"12h"``; *every* left out is as often as *keep* asks for."""
    made = {
        "volume": volume,
        "repository": repository,
        "keep": dict(keep),
        "every": _seconds(every, "every") if every is not None else Retention(**keep).interval,
        "verify_every": _seconds(verify, "verify"),
    }
    return Call(backup_routes.put_policy(project, _body(made, PolicyPut, "policy")), answer(BackupPolicy))


def _seconds(given: float | str, field: str) -> int:
    return round(parse_duration(given, field=field) if isinstance(given, str) else given)


def _body(asked: dict[str, Any], kind: Any, what: str) -> bytes:
    """:raise Invalid: when it is not what the API takes."""
    try:
        return _encode(msgspec.convert(asked, kind))
    except msgspec.ValidationError as error:
        raise Invalid(f"the {what} cannot be asked for: {error}") from error
