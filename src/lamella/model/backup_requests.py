"""What control asks of a host about backups. See :mod:`lamella.model.storage_requests`."""

import msgspec

from lamella.model.backup import Backup, BackupNote, BackupStatus, Credentials, InstanceRecord, Repository
from lamella.model.storage import Volume
from lamella.model.storage_report import Report
from lamella.model.storage_requests_base import StorageRequest


class RepositoryMade(msgspec.Struct, kw_only=True):
    """``recovery_key`` is told once, to be kept by a person; the layer keeps ``key``, which is wrapped."""

    key: str
    credentials: str
    engine_id: str
    recovery_key: str


class OpenRepository(StorageRequest, kw_only=True):
    """Make it where its spec says, or with *recovery_key* open the one that is there. :class:`RepositoryMade`.
    ``Conflict`` when there is one and no key was given; ``Forbidden`` when the key is not its."""

    repository: Repository
    credentials: Credentials = msgspec.field(default_factory=Credentials)
    recovery_key: str = ""


class ListRepository(StorageRequest, kw_only=True):
    """A ``list`` of :class:`Stored`: everything of ours in it."""

    repository: Repository


class Stored(msgspec.Struct, kw_only=True):
    """A backup as the repository knows it."""

    engine_id: str
    note: BackupNote


class BackUp(StorageRequest, kw_only=True):
    """Read the *snapshot* of *volume* (ids) into the repository. What did not change since *base* (the newest backup of it that is there,
    whose snapshot is kept still) is not read. :class:`BackupStatus`."""

    backup: Backup
    repository: Repository
    volume: Volume
    snapshot: str
    base: Backup | None = None


class BackUpLayer(StorageRequest, kw_only=True):
    """The layer's own state: *store* is its database as one file, compressed with zstd. Its key files are added by the host.
    :class:`BackupStatus`."""

    backup: Backup
    repository: Repository
    store: bytes


class BackUpInstance(StorageRequest, kw_only=True):
    """The *record* of an instance, whose volumes are backed up by themselves. :class:`BackupStatus`."""

    backup: Backup
    repository: Repository
    record: InstanceRecord


class ReadInstance(StorageRequest, kw_only=True):
    """The :class:`~lamella.model.backup.InstanceRecord` that *backup* holds. ``Corrupt`` when it is not what was backed up."""

    backup: Backup
    repository: Repository


class RestoreBackup(StorageRequest, kw_only=True):
    """The content of *backup* into *volume*, which is made when it is not there, and is not open. Until all of it is there the volume
    stays what it was, unless it is *fresh*: nothing in it is worth keeping. *passphrase* is what keeps the backed-up volume's key, where
    one does. The volume's :class:`~lamella.model.storage.VolumeStatus`."""

    backup: Backup
    repository: Repository
    volume: Volume
    passphrase: str = ""
    fresh: bool = False


class MountBackup(StorageRequest, kw_only=True):
    """A directory of the host that has its files, read-only; a ``str``. Again gives the same."""

    backup: Backup
    repository: Repository


class UnmountBackup(StorageRequest, kw_only=True):
    """Nothing; not mounted is fine."""

    backup: Backup


class Verified(msgspec.Struct, kw_only=True):
    """``damaged`` are engine ids of backups that cannot be restored whole; ``bytes`` were read and compared."""

    report: Report
    damaged: list[str] = []
    bytes: int = 0


class VerifyBackups(StorageRequest, kw_only=True):
    """Check the repository, reading *share* percent of it, and restore a sample of each of *backups* and compare.
    :class:`Verified`; what is broken is in it, not an error."""

    repository: Repository
    backups: list[Backup]
    all: list[Backup] = []
    share: int = 10


class ForgetBackups(StorageRequest, kw_only=True):
    """These are backups no more; with *prune* the space of what nothing needs is given back. Nothing."""

    repository: Repository
    backups: list[Backup]
    prune: bool = False


AnyBackupRequest = (
    OpenRepository
    | ListRepository
    | BackUp
    | BackUpLayer
    | BackUpInstance
    | ReadInstance
    | RestoreBackup
    | MountBackup
    | UnmountBackup
    | VerifyBackups
    | ForgetBackups
)

__all__ = ["AnyBackupRequest", "BackupStatus", "Stored"]
