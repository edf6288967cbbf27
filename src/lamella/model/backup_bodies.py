"""Bodies of requests about repositories, backups and policies. Credentials and recovery keys are in no log and no row."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.backup import Credentials, Repository, RepositoryUrl, Retention
from lamella.model.requests import Labels
from lamella.model.storage_requests import Passphrase

Name = Annotated[str, Meta(min_length=1, max_length=63)]
Recovery = Annotated[str, Meta(max_length=256)]


class RepositoryCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """With ``recovery_key`` the repository is there already. ``host`` goes to it (left out: any that is there)."""

    name: Name
    url: RepositoryUrl
    host: Annotated[str, Meta(max_length=63)] = ""
    labels: Labels = {}
    credentials: Credentials = msgspec.field(default_factory=Credentials)
    recovery_key: Recovery = ""


class RepositoryCreated(msgspec.Struct, kw_only=True):
    """``recovery_key`` is told this once: whoever has it and the repository can bring everything back, and nobody else."""

    repository: Repository
    recovery_key: str


class BackupCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of a ``volume``, of all volumes of an ``instance`` at one instant, or (both empty) of the layer's own state."""

    repository: Name
    volume: Annotated[str, Meta(max_length=63)] = ""
    instance: Annotated[str, Meta(max_length=63)] = ""
    name: Annotated[str, Meta(max_length=63)] = ""
    consistent: bool = False
    labels: Labels = {}


class BackupRestore(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Into a new volume called ``name``, in ``pool`` (left out: the one that it came from); with ``force`` over the one that has that
    name. With ``instance`` into a new instance called ``name``, from the newest backup of the instance that the path names.
    ``passphrase`` goes with one whose key is kept by it."""

    name: Name
    pool: Annotated[str, Meta(max_length=63)] = ""
    force: bool = False
    instance: bool = False
    passphrase: Passphrase = ""


class BackupMounted(msgspec.Struct, kw_only=True):
    """``path`` is a directory of the ``host``, for root."""

    path: str
    host: str


class RepositoryVerify(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``share`` percent of the content is read; a sample of each of ``backups`` (names; none: of each volume's newest) is restored."""

    share: Annotated[int, Meta(ge=0, le=100)] = 10
    backups: Annotated[list[Name], Meta(max_length=1000)] = []


class PolicyPut(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """For a ``volume``; empty: for the layer's own state."""

    volume: Annotated[str, Meta(max_length=63)] = ""
    repository: Name
    every: Annotated[int, Meta(ge=60, le=366 * 86400)] = 86400
    keep: Retention = msgspec.field(default_factory=Retention)
    verify_every: Annotated[int, Meta(ge=0, le=366 * 86400)] = 7 * 86400
