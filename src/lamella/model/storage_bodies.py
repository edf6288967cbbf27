"""Bodies of requests about pools, volumes and snapshots. Passphrases are in no answer, no log and no row."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from lamella.model.requests import Labels
from lamella.model.storage import KeyWrap, PoolSpec, VolumePath, VolumeSpec
from lamella.model.storage_requests import Passphrase

Name = Annotated[str, Meta(min_length=1, max_length=63)]
SnapshotName = Annotated[str, Meta(min_length=1, max_length=127)]


class PoolCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Name
    labels: Labels = {}
    spec: PoolSpec = msgspec.field(default_factory=PoolSpec)


class VolumeCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``source`` is a volume (``data``) or a snapshot of one (``data@nightly``) of the same project, which it begins as: size, form,
    filesystem and encryption are then that one's. ``passphrase`` goes with ``spec.encryption`` passphrase."""

    name: Name
    labels: Labels = {}
    spec: VolumeSpec = msgspec.field(default_factory=VolumeSpec)
    source: Annotated[str, Meta(max_length=127)] = ""
    passphrase: Passphrase = ""


class VolumeResize(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``size`` is bytes."""

    size: Annotated[int, Meta(ge=1, le=1 << 56)]


class VolumeRename(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Name


class VolumeAttach(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Into the instance of that name, mounted at ``target``; as a bare disk when that is empty."""

    instance: Name
    target: VolumePath = ""
    read_only: bool = False


class VolumeDetach(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    instance: Name


class VolumeUnlock(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    passphrase: Passphrase


class VolumeRekey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``encryption`` is what wraps the new key (left out: what wraps the old one); ``passphrase`` is the old one."""

    encryption: KeyWrap | UnsetType = UNSET
    passphrase: Passphrase = ""
    new_passphrase: Passphrase = ""


class SnapshotCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of a ``volume``, or of all volumes of an ``instance`` at one instant; with ``memory`` a running instance's memory is kept, too. It is
    called ``<that>@<name>``."""

    name: Name
    volume: Annotated[str, Meta(max_length=63)] = ""
    instance: Annotated[str, Meta(max_length=63)] = ""
    labels: Labels = {}
    consistent: bool = False
    memory: bool = False


class SnapshotRestore(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """With ``memory`` the instance's next run goes on from the memory that the snapshot holds, if it holds one. ``start`` has it begin at
    once; left out it does when there is a memory to go on from."""

    memory: bool = True
    start: bool | None = None


class StorageCheck(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``repair`` mends what can be mended; ``remove_orphans`` removes what nobody knows, too."""

    repair: bool = False
    remove_orphans: bool = False


class PoolScrub(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    repair: bool = True
