"""What control asks of a host about replicas, exports and the use of volumes; as :mod:`lamella.model.storage_requests`."""

import msgspec

from lamella.model.replication import Replication
from lamella.model.storage import Volume
from lamella.model.storage_requests_base import StorageRequest


class Replicate(StorageRequest, kw_only=True):
    """Keep *target* as *replication*'s spec says (its ``paused`` too), from now on and after every restart; make *target* if it is not
    there. :class:`ReplicationStatus`."""

    replication: Replication
    source: Volume
    target: Volume


class ObserveReplications(StorageRequest, kw_only=True):
    """A ``dict`` of :class:`ReplicationStatus` by id, of those that this host knows."""

    ids: list[str]


class Promote(StorageRequest, kw_only=True):
    """*target* takes the place of *source*, which can be opened no more. :class:`VolumeStatus` of *target*.
    ``Conflict`` when acknowledged writes would be lost and *force* is not set."""

    replication: Replication
    source: Volume
    target: Volume
    force: bool = False


class EndReplication(StorageRequest, kw_only=True):
    """Stop it and remove what it kept; *target* goes too, unless it was promoted. Nothing."""

    replication: Replication
    source: Volume | None = None
    target: Volume | None = None


class MeasureAccess(StorageRequest, kw_only=True):
    """A ``dict`` of :class:`VolumeAccess` by id."""

    volumes: list[Volume]


class ExportedDigest(msgspec.Struct, kw_only=True):
    """The SHA-256 (hexadecimal) and the length of the newest export that was read to its end."""

    sha256: str
    size: int


class DigestExport(StorageRequest, kw_only=True):
    """:class:`ExportedDigest` of the newest export of *volume* at *snapshot* (empty: itself) as *format*. ``NotFound`` when there was
    none since the daemon started."""

    volume: Volume
    snapshot: str = ""
    format: str = "raw"


AnyReplicationRequest = Replicate | ObserveReplications | Promote | EndReplication | MeasureAccess | DigestExport
