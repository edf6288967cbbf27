"""Pools, the volumes cut from them, and their snapshots. Sizes are bytes, rates bytes or operations a second."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.mount import VolumeMount as VolumeMount
from lamella.model.mount import VolumePath as VolumePath
from lamella.model.origin import Origin
from lamella.model.replication import TieringPolicy, TierState
from lamella.model.resource import Condition, Resource

Rate = Annotated[int, Meta(ge=1, le=1 << 50)]
# What of a block volume's id makes the name of the device that a machine sees.
_DEVICE_DIGITS = 12


class VolumeForm(StrEnum):
    """``block`` is a disk, which one instance writes to; ``filesystem`` a directory tree, which containers and modules can share."""

    FILESYSTEM = "filesystem"
    BLOCK = "block"


class KeyWrap(StrEnum):
    """What keeps the key of an encrypted volume: a file of the host, a passphrase that whoever opens it brings, or the host's TPM."""

    KEY_FILE = "key-file"
    PASSPHRASE = "passphrase"
    TPM = "tpm"


class PoolSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``path`` is where the driver keeps it, in the driver's words (a directory, a Ceph pool's name, a server and a volume);
    ``options`` are the driver's own. ``warn_below`` is the share of free space under which the layer warns, 0 to 1."""

    driver: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,30}$(?!\n)")] = "directory"
    path: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    options: Annotated[
        dict[
            Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,30}$(?!\n)")],
            Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")],
        ],
        Meta(max_length=32),
    ] = {}
    warn_below: Annotated[float, Meta(ge=0, le=1)] = 0.1


class StoragePhase(StrEnum):
    """Where a pool, a volume or a snapshot is in its life. What is not ``ready`` cannot be used."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class PoolStatus(msgspec.Struct, kw_only=True):
    """Bytes, as what lies below says. ``features`` are what the driver does by itself (:class:`Feature`); the layer does the rest."""

    phase: StoragePhase = StoragePhase.READY
    capacity: int = 0
    free: int = 0
    features: list[str] = []
    conditions: list[Condition] = []


class Feature(StrEnum):
    """What a pool's driver does natively. What is missing is done by a general mechanism: layers, mirror, copy."""

    BLOCK = "block"
    FILESYSTEM = "filesystem"
    THIN = "thin"
    SNAPSHOT = "snapshot"
    # A snapshot of a volume that is open, taken below whoever has it open.
    LIVE_SNAPSHOT = "live-snapshot"
    # A new volume from a snapshot in a time that does not depend on its size.
    CLONE = "clone"
    SHRINK = "shrink"
    # A filesystem volume cannot grow beyond its size.
    QUOTA = "quota"
    # Which extents differ between two snapshots is known without reading them.
    DELTA = "delta"
    # Data is stored more than once, or with checksums that find a flipped bit.
    REDUNDANT = "redundant"
    CHECKSUM = "checksum"
    # Several hosts can reach it.
    SHARED = "shared"


class IoLimits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Ceilings of reads and writes together. ``None`` is none. A burst may last ``burst_seconds``. Volumes of one project with the
    same ``group`` share one set of limits: the newest that was set."""

    iops: Rate | None = None
    bandwidth: Rate | None = None
    iops_burst: Rate | None = None
    bandwidth_burst: Rate | None = None
    burst_seconds: Annotated[int, Meta(ge=1, le=3600)] = 1
    group: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9-]{0,62})?$(?!\n)")] = ""

    @property
    def limited(self) -> bool:
        return any(value is not None for value in (self.iops, self.bandwidth))


class VolumeSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``size`` is bytes (0: no bound but the pool's, for ``filesystem``); ``owner`` is the id of the instance that it dies with.

    ``filesystem`` is what a block volume is formatted with (empty: it is left raw); ``source`` the id of the snapshot that it began as;
    ``shred`` overwrites its blocks before they are given back.
    """

    pool: str = "default"
    form: VolumeForm = VolumeForm.BLOCK
    size: Annotated[int, Meta(ge=0, le=1 << 56)] = 0
    owner: str | None = None
    filesystem: Annotated[str, Meta(pattern=r"^(ext4)?$(?!\n)")] = ""
    source: str | None = None
    limits: IoLimits = msgspec.field(default_factory=IoLimits)
    encryption: KeyWrap | None = None
    shred: bool = False
    tier: TieringPolicy | None = None


class VolumeStatus(msgspec.Struct, kw_only=True):
    """``size`` is what it has now, ``used`` what it takes in the pool. ``key`` is its wrapped key, worth nothing without what wraps it.
    ``attached`` are the ids of the instances that name it; ``observed_generation`` is that of the spec that its host has made true."""

    host: str | None = None
    phase: StoragePhase = StoragePhase.READY
    size: int = 0
    used: int = 0
    key: str = ""
    attached: list[str] = []
    observed_generation: int = 0
    tier: TierState | None = None
    conditions: list[Condition] = []


class SnapshotSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of one volume, or of all ``volumes`` (ids) of an instance at one instant. ``consistent`` asks for the guest's filesystems to be
    frozen meanwhile. ``owner`` is the id of the clone that it was taken for, and goes with. With ``memory`` a running instance's memory is
    kept too, as it was at that instant. One that is ``passing`` was taken for copies: its memory goes when each of them has begun, and
    the rest when no volume stands on it any more."""

    volume: str | None = None
    instance: str | None = None
    volumes: list[str] = []
    consistent: bool = False
    owner: str | None = None
    memory: bool = False
    passing: bool = False


class SnapshotStatus(msgspec.Struct, kw_only=True):
    """``consistency`` is ``crash`` (as after a power cut) or ``application`` (filesystems were frozen); ``pause`` is for how many
    seconds the writers stood still; ``sizes`` are the volumes' at that instant, by id; ``memory`` is how many bytes its memory takes, and
    ``origin`` the machine that it is of."""

    host: str | None = None
    phase: StoragePhase = StoragePhase.PENDING
    consistency: str = ""
    taken_at: datetime | None = None
    pause: float = 0.0
    sizes: dict[str, int] = {}
    memory: int = 0
    origin: Origin | None = None
    conditions: list[Condition] = []


class StorageEvent(msgspec.Struct, kw_only=True):
    """What befell a host's storage: ``pool.low``, ``pool.full``, ``pool.ok``, ``volume.error``, ``volume.ok``, ``storage.restarted``,
    ``volume.unflushed`` (what was not flushed may be lost).

    ``pool`` is its name, ``volume`` an id; both are empty for what befell all of it.
    """

    type: Annotated[str, Meta(pattern=r"^[a-z]+(\.[a-z-]+)+$(?!\n)")]
    message: str
    pool: str = ""
    volume: str = ""
    facts: dict[str, str] = {}


def device_of(volume_id: str) -> str:
    """The name of the device that a machine has for a volume, and the disk's serial number."""
    return f"vol-{volume_id[-_DEVICE_DIGITS:]}"


Pool = Resource[PoolSpec, PoolStatus]
Volume = Resource[VolumeSpec, VolumeStatus]
Snapshot = Resource[SnapshotSpec, SnapshotStatus]
