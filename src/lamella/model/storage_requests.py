"""What control asks of a host's storage: one verb with many requests, each answered by lines of progress and one result.

Every request may be made again after a crash at any line: it finds what it had made. ``key`` fields are wrapped keys;
``passphrase`` is what unwraps one when that is how it is wrapped, and is never written down.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.backup_requests import AnyBackupRequest
from lamella.model.instance import Instance
from lamella.model.replication_requests import AnyReplicationRequest
from lamella.model.storage import Pool, Snapshot, Volume
from lamella.model.storage_report import Orphan
from lamella.model.storage_report import Report as Report
from lamella.model.storage_report import StorageFinding as StorageFinding
from lamella.model.storage_requests_base import StorageRequest as StorageRequest

Passphrase = Annotated[str, Meta(max_length=4096)]


class OpenPool(StorageRequest, kw_only=True):
    """Make *pool* usable on this host; :class:`PoolStatus`. ``Invalid`` or ``Unavailable`` when that cannot be."""

    pool: Pool


class ClosePool(StorageRequest, kw_only=True):
    """Let go of it; what is in it stays. Nothing is returned. ``Conflict`` when a volume of it is open."""

    pool: Pool


class CreateVolume(StorageRequest, kw_only=True):
    """Make *volume*, formatted, encrypted as its spec says; from *source* (a snapshot and the volume that it is of) when that is given.
    :class:`VolumeStatus`, with the wrapped key."""

    volume: Volume
    source: Volume | None = None
    snapshot: Snapshot | None = None
    passphrase: Passphrase = ""


class DeleteVolume(StorageRequest, kw_only=True):
    """Remove it with its snapshots; shred it first if its spec says so. Nothing. ``Conflict`` when it is open."""

    volume: Volume


class ResizeVolume(StorageRequest, kw_only=True):
    """Make it *size* bytes, open or not, with the filesystem in it. :class:`VolumeStatus`.
    ``Unsupported`` when it would have to shrink and cannot without loss."""

    volume: Volume
    size: int


class LimitVolume(StorageRequest, kw_only=True):
    """The limits of its spec are in force from now on, if it is open. Nothing."""

    volume: Volume


class RekeyVolume(StorageRequest, kw_only=True):
    """Give it another key, wrapped as *volume*'s spec says now; the old one opens nothing any more. :class:`VolumeStatus`."""

    volume: Volume
    passphrase: Passphrase = ""
    new_passphrase: Passphrase = ""


class UnlockVolume(StorageRequest, kw_only=True):
    """Keep the key that *passphrase* unwraps until the daemon ends, so that instances can start. Nothing."""

    volume: Volume
    passphrase: Passphrase


class TakeSnapshot(StorageRequest, kw_only=True):
    """All *volumes* at one instant; *instance* is whose they are, if it runs here. :class:`SnapshotStatus`. ``Conflict`` when its memory is
    to be kept and it does not run."""

    snapshot: Snapshot
    volumes: list[Volume]
    instance: Instance | None = None


class DropSnapshot(StorageRequest, kw_only=True):
    """Merge it away, and remove the memory that it holds. Nothing. ``Conflict`` when a volume stands on it."""

    snapshot: Snapshot
    volumes: list[Volume]


class ForgetMemory(StorageRequest, kw_only=True):
    """Remove the memory that *snapshot* holds; its disks stay. Nothing. Those that began with it go on."""

    snapshot: Snapshot


class RestoreSnapshot(StorageRequest, kw_only=True):
    """*volumes* become what they were; none of them is open. Nothing."""

    snapshot: Snapshot
    volumes: list[Volume]


class MeasureVolumes(StorageRequest, kw_only=True):
    """A ``dict`` of :class:`VolumeStatus` by id: ``size`` and ``used`` as they are now."""

    volumes: list[Volume]


class ImportVolume(StorageRequest, kw_only=True):
    """The content of the file *path* (on this host, of *format*, empty: found out) into the new *volume*. :class:`VolumeStatus`."""

    volume: Volume
    path: str
    format: str = ""


class MoveVolume(StorageRequest, kw_only=True):
    """From the pool of its spec to *pool*, open or not, with at most *speed* bytes a second (0: what leaves the writer its share).
    :class:`VolumeStatus`. Snapshots do not move: ``Conflict`` when there are any."""

    volume: Volume
    pool: Pool
    speed: int = 0


class CheckStorage(StorageRequest, kw_only=True):
    """``fsck``: compare *volumes* and their *snapshots* with what lies in the pools, and mend with *repair*. :class:`Report`.

    *known* are the ids of all volumes of the layer, those of other hosts among them. What is none of these is named as an
    :class:`Orphan`; whether it is one is for control to say, which reads its rows again and then asks for :class:`RemoveOrphan`."""

    volumes: list[Volume]
    snapshots: list[Snapshot]
    known: list[str] = []
    repair: bool = False


class RemoveOrphan(StorageRequest, kw_only=True):
    """Remove what no row names. Nothing. ``Conflict`` when somebody has it open or works on it, or this host keeps it for itself."""

    orphan: Orphan


class ScrubPool(StorageRequest, kw_only=True):
    """Read everything in *pool* and compare with what it should be. :class:`Report`."""

    pool: Pool
    repair: bool = True


AnyStorageRequest = (
    OpenPool
    | ClosePool
    | CreateVolume
    | DeleteVolume
    | ResizeVolume
    | LimitVolume
    | RekeyVolume
    | UnlockVolume
    | TakeSnapshot
    | DropSnapshot
    | ForgetMemory
    | RestoreSnapshot
    | MeasureVolumes
    | ImportVolume
    | MoveVolume
    | CheckStorage
    | RemoveOrphan
    | ScrubPool
    | AnyBackupRequest
    | AnyReplicationRequest
)


class StorageProgress(msgspec.Struct, kw_only=True):
    """A line of progress; the last one has ``result`` (JSON of the type that the request names, ``null`` for nothing) or an error."""

    step: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    result: msgspec.Raw = msgspec.Raw(b"")
    error_code: str = ""
    error: str = ""
    hint: str = ""
