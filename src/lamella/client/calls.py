"""Every question of the library as a :class:`Call`: built here once, executed by two faces."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import msgspec

from lamella.client import devices, routes
from lamella.client.call import Call, answer, decode, nothing
from lamella.client.lines import ServerEvent
from lamella.client.problem import problem
from lamella.client.request import Request
from lamella.model.board import DesktopTicket, Input
from lamella.model.contract import Comparison, Contract, WhyNot
from lamella.model.errors import Invalid, LamellaError, error_for
from lamella.model.files import FileInfo
from lamella.model.image import Image
from lamella.model.instance import Instance, Phase
from lamella.model.kinds import KINDS
from lamella.model.operation import Operation, OperationPhase
from lamella.model.requests import (
    About,
    Diagnosis,
    Explanation,
    Freed,
    ImageCreate,
    InstanceCreate,
    InstanceFork,
    KillRequest,
    ResourcePatch,
    StopRequest,
)
from lamella.model.stream import ExecSpec, FromProcess, ToProcess
from lamella.model.usage import LogEntry, Usage

PowerVerb = Literal["start", "stop", "restart", "pause", "resume", "suspend"]
Condition = Literal["settled", "running", "stopped", "removed"]
DesktopKind = Literal["vnc", "spice"]
DiskFormat = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx"]
KindT = TypeVar("KindT")

SETTLE = 300.0  # seconds that a verb waits for its change to have happened

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Page(msgspec.Struct, Generic[KindT], kw_only=True):
    """One page of one kind; ``cursor`` is empty on the last."""

    items: list[KindT]
    cursor: str = ""
    revision: int = 0


class Change(msgspec.Struct, Generic[KindT], kw_only=True, frozen=True):
    """One thing that happened to a resource: ``action`` is ``created``, ``updated`` or ``deleted``."""

    action: str
    revision: int
    resource: KindT


def about() -> Call[About]:
    return Call(routes.about(), answer(About))


def doctor() -> Call[Diagnosis]:
    return Call(routes.doctor(), answer(Diagnosis))


def find(project: str, kind: str, labels: Mapping[str, str] | None, cursor: str) -> Call[Page[Any]]:
    return Call(routes.find(project, kind, labels=labels, cursor=cursor), answer(Page[KINDS[kind]]))


def get(project: str, kind: str, name: str) -> Call[Any]:
    return Call(routes.get(project, kind, name), answer(KINDS[kind]))


def change(kind: str, event: ServerEvent) -> Change[Any]:
    """The change that a watch's *event* tells.

    :raise LamellaError: when it tells why the watch ends.
    """
    if event.event == "problem":
        raise problem(500, event.data)
    resource = decode(event.data, KINDS[kind])
    return Change(action=event.event, revision=int(event.id or 0), resource=resource)


def remove(project: str, kind: str, name: str, *, force: bool = False, wait: float | None = None) -> Call[None]:
    return Call(routes.remove(project, kind, name, force=force, wait=wait), nothing)


def create_instance(project: str, body: InstanceCreate, *, wait: float | None) -> Call[Instance]:
    return Call(routes.create_instance(project, _encode(body), wait=wait), answer(Instance))


def patch_instance(project: str, name: str, body: ResourcePatch, *, revision: int | None = None) -> Call[Instance]:
    return Call(
        routes.patch(project, "instance", name, _encode(body), revision=revision, wait=SETTLE), answer(Instance)
    )


def power(project: str, name: str, verb: PowerVerb, *, timeout: float | None = None) -> Call[Instance]:
    body = None if timeout is None else _encode(StopRequest(timeout=timeout))
    wait = min(3600.0, SETTLE + (timeout or 0))
    return Call(routes.instance_verb(project, name, verb, body=body, wait=wait), answer(Instance))


def fork(project: str, name: str, count: int, prefix: str | None, labels: Mapping[str, str] | None) -> Call[Operation]:
    """:raise Invalid: when so many, or such a name, cannot be asked for."""
    try:
        body = msgspec.convert({"count": count, "name": prefix, "labels": dict(labels or {})}, InstanceFork)
    except msgspec.ValidationError as error:
        raise Invalid(f"the copies cannot be asked for: {error}", field="count") from error
    return Call(routes.fork(project, name, _encode(body)), answer(Operation))


def kill(project: str, name: str, signal: str) -> Call[Instance]:
    return Call(routes.instance_verb(project, name, "kill", body=_encode(KillRequest(signal=signal))), answer(Instance))


def wait_for(project: str, name: str, condition: Condition, timeout: float) -> Call[Instance]:
    return Call(routes.wait_for(project, name, condition, timeout), answer(Instance))


def reset(project: str, name: str) -> Call[None]:
    return Call(routes.instance_verb(project, name, "reset"), nothing)


def screenshot(project: str, name: str) -> Call[bytes]:
    return Call(routes.screenshot(project, name), lambda reply: reply.body)


def send_input(project: str, name: str, body: Input) -> Call[None]:
    # Typing takes its time, key by key.
    return Call(routes.send_input(project, name, _encode(body), wait=SETTLE), nothing)


def desktop(project: str, name: str, kind: DesktopKind) -> Call[DesktopTicket]:
    return Call(routes.desktop(project, name, kind=kind), answer(DesktopTicket))


def compare() -> Call[Comparison]:
    return Call(routes.levels(), answer(Comparison))


def why_not(level: str) -> Call[WhyNot]:
    return Call(routes.why_not(level), answer(WhyNot))


def plug(instance: Instance, kind: str, description: dict[str, Any], name: str | None) -> tuple[str, Call[Instance]]:
    """The new device's name, and the patch that plugs it into *instance* as it was read.

    :raise Conflict: when the name is taken.
    """
    made, patch = devices.attach(msgspec.to_builtins(instance.spec), kind, description, name)
    return made, _patch_devices(instance, patch)


def unplug(instance: Instance, name: str, *, force: bool) -> Call[Instance]:
    """The patch that takes the device out of *instance* as it was read.

    :raise NotFound: when there is no such device.
    :raise Conflict: when it is a disk and *force* is not set.
    """
    _, patch = devices.detach(msgspec.to_builtins(instance.spec), name, force=force)
    return _patch_devices(instance, patch)


def _patch_devices(instance: Instance, patch: dict[str, Any]) -> Call[Instance]:
    body = ResourcePatch(spec=patch)
    return patch_instance(instance.project, instance.id, body, revision=instance.revision)


def contract(project: str, name: str) -> Call[Contract]:
    return Call(routes.instance_page(project, name, "contract"), answer(Contract))


def explain(project: str, name: str) -> Call[Explanation]:
    return Call(routes.instance_page(project, name, "explain"), answer(Explanation))


def usage(project: str) -> Call[dict[str, Usage]]:
    return Call(routes.usage(project), answer(dict[str, Usage]))


def logs(project: str, name: str, *, follow: bool, tail: int | None, since: datetime | None) -> Request:
    """Read the answer's lines with :func:`log_entry`."""
    return routes.logs(project, name, follow=follow, tail=tail, since=since.isoformat() if since else None)


def log_entry(line: bytes) -> LogEntry:
    return decode(line, LogEntry)


def file_info(project: str, name: str, path: str) -> Call[FileInfo]:
    return Call(routes.file_info(project, name, path), answer(FileInfo))


def list_directory(project: str, name: str, path: str) -> Call[list[FileInfo]]:
    return Call(routes.list_directory(project, name, path), answer(list[FileInfo]))


def read_file(project: str, name: str, path: str) -> Call[bytes]:
    return Call(routes.read_file(project, name, path), lambda reply: reply.body)


def write_file(
    project: str, name: str, path: str, data: bytes | Iterable[bytes], *, mode: int, uid: int, gid: int
) -> Call[None]:
    return Call(routes.write_file(project, name, path, data, mode=mode, uid=uid, gid=gid), nothing)


def make_directory(project: str, name: str, path: str, *, mode: int, uid: int, gid: int) -> Call[None]:
    return Call(routes.make_directory(project, name, path, mode=mode, uid=uid, gid=gid), nothing)


def bring_image(project: str, body: ImageCreate) -> Call[Operation]:
    return Call(routes.bring_image(project, _encode(body)), answer(Operation))


def image(project: str, operation: Operation) -> Call[Image]:
    """The image that the ended *operation* made.

    :raise LamellaError: what the operation failed with.
    """
    status = operation.status
    if status.phase is not OperationPhase.DONE:
        error = error_for(status.error_code or "unavailable")
        raise error(
            status.error or f"{operation.spec.verb} of {operation.spec.subject} has not ended",
            hint=status.hint or f"lamella operation show {operation.id}",
        )
    return get(project, "image", status.result.removeprefix("image/"))


def collect_images() -> Call[Freed]:
    return Call(routes.collect_images(), answer(Freed))


def started(instance: Instance) -> Instance:
    """*instance*, when it did start.

    :raise LamellaError: what its condition says, when it failed to.
    """
    if instance.status.phase is not Phase.FAILED:
        return instance
    raise failure(instance)


def failure(instance: Instance) -> LamellaError:
    """Why *instance* failed, as an error."""
    for condition in instance.status.conditions:
        if not condition.status and condition.message:
            return error_for("unavailable")(f"{instance.name} failed: {condition.message}", hint=condition.hint)
    return error_for("unavailable")(f"{instance.name} failed", hint=f"lamella explain {instance.name}")


def pack_spec(spec: ExecSpec) -> bytes:
    return msgspec.msgpack.encode(spec)


def pack_frame(frame: ToProcess) -> bytes:
    return msgspec.msgpack.encode(frame)


_frames: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)


def read_frame(data: bytes) -> FromProcess:
    """:raise Unavailable: when *data* is no frame."""
    try:
        return _frames.decode(data)
    except msgspec.MsgspecError as error:
        raise error_for("unavailable")(f"the daemon sent a frame that was not understood: {error}") from error
