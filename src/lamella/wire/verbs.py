"""What is asked over the wire: the arguments of every verb of ``ControlDesk`` and ``HostAgent``, as they are sent (msgpack)."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.assignment import ImageRequest, InstanceReport
from lamella.model.balancer import BalancerReport
from lamella.model.board import Input
from lamella.model.capture import CaptureSpec
from lamella.model.host import HostStatus
from lamella.model.storage import StorageEvent, Volume
from lamella.model.storage_requests import AnyStorageRequest
from lamella.model.stream import ExecSpec


class Nothing(msgspec.Struct, kw_only=True):
    """No arguments, or no answer but that it is done."""


class Register(msgspec.Struct, kw_only=True):
    name: str
    status: HostStatus
    address: str


class AskAssignments(msgspec.Struct, kw_only=True):
    host: str
    since: int
    wait: Annotated[float, Meta(ge=0, le=3600)]


class Report(msgspec.Struct, kw_only=True):
    host: str
    reports: list[InstanceReport]


class ReportBalancers(msgspec.Struct, kw_only=True):
    host: str
    reports: list[BalancerReport]


class Tell(msgspec.Struct, kw_only=True):
    host: str
    events: list[StorageEvent]


class Wake(msgspec.Struct, kw_only=True):
    revision: int


class Exec(msgspec.Struct, kw_only=True):
    id: str
    spec: ExecSpec


class Attach(msgspec.Struct, kw_only=True):
    id: str
    start: bool


class Kill(msgspec.Struct, kw_only=True):
    id: str
    signal: int


class Logs(msgspec.Struct, kw_only=True):
    id: str
    follow: bool
    tail: int | None
    since: datetime | None


class AtPath(msgspec.Struct, kw_only=True):
    """Of stat, list_directory and read_file."""

    id: str
    path: str


class MakeAtPath(msgspec.Struct, kw_only=True):
    """Of write_file and make_directory."""

    id: str
    path: str
    mode: int
    uid: int
    gid: int


class AskUsage(msgspec.Struct, kw_only=True):
    ids: list[str]


class AskJudgements(msgspec.Struct, kw_only=True):
    ids: list[str]


class AskMechanisms(msgspec.Struct, kw_only=True):
    id: str


class Machine(msgspec.Struct, kw_only=True):
    """Of reset and screenshot."""

    id: str


class Hands(msgspec.Struct, kw_only=True):
    """Of input."""

    id: str
    input: Input


class Screen(msgspec.Struct, kw_only=True):
    """Of desktop and screen."""

    id: str
    kind: str


class Dump(msgspec.Struct, kw_only=True):
    id: str
    crash: bool


class Capture(msgspec.Struct, kw_only=True):
    id: str
    wish: CaptureSpec


class ExportImage(msgspec.Struct, kw_only=True):
    digest: str
    format: str


class BringImage(msgspec.Struct, kw_only=True):
    request: ImageRequest


class CollectImages(msgspec.Struct, kw_only=True):
    keep: set[str]


class Storage(msgspec.Struct, kw_only=True):
    request: AnyStorageRequest


class ExportVolume(msgspec.Struct, kw_only=True):
    volume: Volume
    snapshot: str
    format: str
