"""The query strings that routes take, one struct each: what they mean is said here once, for the reader and for OpenAPI."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.api.face import DesktopKind, DiskFormat, VolumeFormat, WaitCondition
from lamella.model.capture import CaptureSpec
from lamella.model.files import InstancePath
from lamella.model.firewall import Protocol

Seconds = Annotated[
    float, Meta(ge=0, le=3600, description="How long to wait for it to have happened; 0: until it is recorded")
]
Revision = Annotated[int, Meta(ge=0, le=1 << 62, description="A revision that was read before")]
Label = Annotated[
    str, Meta(max_length=700, pattern=r"^[^=\x00]+=[^\x00]*$", description="key=value; all of them must match")
]
FileMode = Annotated[str, Meta(pattern=r"^0?[0-7]{1,4}$", description="Permission bits, octal")]
UserId = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]
Path = Annotated[InstancePath, Meta(description="An absolute path inside the instance")]


class Query(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A parameter that a route does not know is refused: a typo is not silently something else."""


class ListQuery(Query):
    label: list[Label] = []
    cursor: Annotated[str, Meta(max_length=512, description="What the last page gave")] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    watch: Annotated[
        bool, Meta(description="Answer with changes as server-sent events, for as long as one listens")
    ] = False
    since: Annotated[Revision | None, Meta(description="Watch from here; left out: Last-Event-ID, or now")] = None


class ChangesQuery(Query):
    since: Annotated[Revision | None, Meta(description="Watch from here; left out: Last-Event-ID, or now")] = None


class WriteQuery(Query):
    wait: Seconds = 0.0


class DeleteQuery(Query):
    wait: Seconds = 0.0
    force: Annotated[bool, Meta(description="Stop it first; a volume goes with its snapshots")] = False


class WaitQuery(Query, rename={"condition": "for"}):
    condition: WaitCondition = "settled"
    timeout: Annotated[float, Meta(ge=0, le=86400, description="Seconds; then deadline-exceeded")] = 60.0


class TraceQuery(Query):
    """``type`` is an ICMP message's (8: an echo)."""

    to: Annotated[str, Meta(min_length=1, max_length=63, description="An IPv4 address, or an instance's name")]
    protocol: Protocol = Protocol.TCP
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    type: Annotated[int, Meta(ge=0, le=255)] = 8


class LogsQuery(Query):
    follow: bool = False
    tail: Annotated[int, Meta(ge=0, le=1_000_000, description="Only the newest so many lines")] | None = None
    since: datetime | None = None


class PathQuery(Query):
    path: Path


class ContentQuery(Query):
    path: Path
    mode: FileMode = "0644"
    uid: UserId = 0
    gid: UserId = 0


class DirectoryQuery(Query):
    path: Path
    mode: FileMode = "0755"
    uid: UserId = 0
    gid: UserId = 0


class ScreenQuery(Query):
    kind: Annotated[DesktopKind, Meta(description="Which protocol the viewer speaks")] = "vnc"


class CaptureQuery(Query, CaptureSpec):
    """Left out: all packets of the first NIC, whole, for as long as one reads."""


class DumpQuery(Query):
    crash: Annotated[bool, Meta(description="What was kept when its kernel crashed, and not what is there now")] = False


class VolumeExportQuery(Query):
    format: Annotated[VolumeFormat, Meta(description="Of the file that is answered")] = "raw"


class ExportQuery(Query):
    format: Annotated[DiskFormat, Meta(description="Of the file that is answered")] = "qcow2"
