"""Bodies of requests that bring volumes in, move them, replicate them and tier them."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.replication import ReplicationMode, TieringPolicy
from lamella.model.requests import Labels
from lamella.model.storage import VolumeSpec

Name = Annotated[str, Meta(min_length=1, max_length=63)]


class VolumeImport(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The disk in the file ``path`` of the host becomes a volume. ``format`` is found out when it is left out; a size in ``spec`` may be
    larger than the disk."""

    name: Name
    path: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]
    format: Annotated[str, Meta(pattern=r"^[a-z0-9]{0,16}$")] = ""
    labels: Labels = {}
    spec: VolumeSpec = msgspec.field(default_factory=VolumeSpec)


class VolumeMove(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``speed`` is bytes a second at most; 0 is what leaves the writer its share."""

    pool: Name
    speed: Annotated[int, Meta(ge=0, le=1 << 50)] = 0


class VolumeTier(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Without a ``policy`` the volume stays where it is."""

    policy: TieringPolicy | None = None


class ReplicationCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``volume`` is kept a second time in ``pool``, as the volume ``target`` (left out: its name and ``-replica``). The replication is
    called as the volume when it has no ``name``."""

    volume: Name
    pool: Name
    mode: ReplicationMode = ReplicationMode.ASYNC
    every: Annotated[float, Meta(ge=0.5, le=366 * 86400)] = 60.0
    name: Annotated[str, Meta(max_length=63)] = ""
    target: Annotated[str, Meta(max_length=63)] = ""
    labels: Labels = {}


class ReplicationPromote(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """With ``force`` even when writes are lost that were acknowledged."""

    force: bool = False
