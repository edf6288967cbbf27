"""Repositories, backups and backup policies. Sizes are bytes, times seconds."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.instance import InstanceSpec
from lamella.model.resource import Condition, Resource
from lamella.model.storage import StoragePhase, VolumeForm, VolumeSpec

RepositoryUrl = Annotated[str, Meta(min_length=1, max_length=2048, pattern=r"^[^\x00-\x20\x7f]+$")]
Keep = Annotated[int, Meta(ge=0, le=10_000)]
Text = Annotated[str, Meta(max_length=65536)]


class Credentials(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a place wants to know of who comes: S3's key pair and region, the private key of SSH, and the server's own keys (lines of
    known_hosts; without them the first answer is believed, and kept). They are stored sealed, and shown to nobody."""

    access_key: Text = ""
    secret_key: Text = ""
    region: Text = ""
    ssh_key: Text = ""
    known_hosts: Text = ""


class RepositorySpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``url`` is a directory (``/mnt/usb``), ``s3://host/bucket/path`` (``s3+http://`` without TLS) or ``sftp://user@host:port/path``."""

    url: RepositoryUrl
    host: Annotated[str, Meta(max_length=63)] = ""


class RepositoryStatus(msgspec.Struct, kw_only=True):
    """``key`` is its wrapped key and ``credentials`` are sealed with it: neither is worth anything elsewhere. ``host`` is the id of the
    host that goes to it."""

    host: str | None = None
    phase: StoragePhase = StoragePhase.PENDING
    key: str = ""
    credentials: str = ""
    engine_id: str = ""
    checked_at: datetime | None = None
    pruned_at: datetime | None = None
    conditions: list[Condition] = []


class BackupSource(StrEnum):
    """What a backup is of."""

    VOLUME = "volume"
    INSTANCE = "instance"
    LAYER = "layer"


class BackupSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of the volume with the id ``volume``, in the ``repository`` with that id; names are as they were. ``instance`` is the name of the
    instance that it is of, or whose volumes were taken with it, at one instant. ``policy`` is the id of the policy that asked for it."""

    repository: str
    repository_name: str = ""
    of: BackupSource = BackupSource.VOLUME
    volume: str = ""
    volume_name: str = ""
    instance: str = ""
    policy: str = ""


class BackupNote(msgspec.Struct, kw_only=True):
    """What the engine keeps beside the content, so that the repository alone tells everything. ``size`` is that of the content, ``key``
    the volume's wrapped key, ``piece`` the size of pieces (0: a tree of files)."""

    backup: str
    name: str
    project: str = "default"
    of: BackupSource = BackupSource.VOLUME
    volume: str = ""
    volume_name: str = ""
    spec: VolumeSpec = msgspec.field(default_factory=VolumeSpec)
    size: int = 0
    piece: int = 0
    key: str = ""
    taken_at: datetime | None = None
    samples: dict[str, str] = {}
    instance: str = ""

    @property
    def form(self) -> VolumeForm:
        return self.spec.form


class InstanceRecord(msgspec.Struct, kw_only=True):
    """What a backup of an instance holds: how it was asked for, and the backups (ids) of its volumes. ``disks`` are by the device's name,
    ``volumes`` by the name that the spec calls them."""

    name: str
    labels: dict[str, str] = {}
    spec: InstanceSpec
    root: str = ""
    disks: dict[str, str] = {}
    volumes: dict[str, str] = {}


class BackupStatus(msgspec.Struct, kw_only=True):
    """``engine_id`` is what the engine calls it. ``read`` is how much was read, ``added`` how much the repository grew, ``took`` seconds.

    ``snapshot`` is the id of the snapshot that it was read from, which stays until the next backup has been made from it.
    """

    phase: StoragePhase = StoragePhase.PENDING
    host: str | None = None
    engine_id: str = ""
    note: BackupNote | None = None
    snapshot: str = ""
    taken_at: datetime | None = None
    incremental: bool = False
    size: int = 0
    read: int = 0
    added: int = 0
    took: float = 0.0
    verified_at: datetime | None = None
    verified: bool | None = None
    mounted: str = ""
    conditions: list[Condition] = []


class Retention(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How many of the newest are kept, one a day, a week, a month, and the newest ``last`` whatever their time."""

    last: Keep = 0
    hourly: Keep = 0
    daily: Keep = 0
    weekly: Keep = 0
    monthly: Keep = 0

    @property
    def interval(self) -> int:
        """Seconds between two backups that this asks for, when nobody says otherwise."""
        if self.hourly:
            return 3600
        if self.daily or self.last or not (self.weekly or self.monthly):
            return 86400
        return 7 * 86400 if self.weekly else 30 * 86400


class PolicySpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A volume (its id; or the layer's own state, when it is empty) is backed up to the repository with that id every ``every`` seconds,
    and what ``keep`` does not name is forgotten. ``verify_every`` is in seconds; 0 is never. Names are as they were."""

    volume: str
    repository: str
    volume_name: str = ""
    repository_name: str = ""
    every: Annotated[int, Meta(ge=60, le=366 * 86400)] = 86400
    keep: Retention = msgspec.field(default_factory=Retention)
    verify_every: Annotated[int, Meta(ge=0, le=366 * 86400)] = 7 * 86400


class PolicyStatus(msgspec.Struct, kw_only=True):
    """``due`` is when the next one is made; ``failed`` says why the last one was not."""

    due: datetime | None = None
    last: datetime | None = None
    verified: datetime | None = None
    failed: str = ""
    conditions: list[Condition] = []


Repository = Resource[RepositorySpec, RepositoryStatus]
Backup = Resource[BackupSpec, BackupStatus]
BackupPolicy = Resource[PolicySpec, PolicyStatus]
