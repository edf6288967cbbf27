"""Between a resource and its row: JSON text and moments, each kind checked against its own types."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, get_args

import msgspec

from lamella.model.errors import Internal, Invalid
from lamella.model.kinds import KINDS, AnyResource, decode
from lamella.model.resource import Resource
from lamella.store.store import Change

# As the driver gives it: text, numbers and None, in the order of the columns that were asked for.
Row = Sequence[Any]

_labels = msgspec.json.Decoder(dict[str, str])


class _Shape:
    """The decoders of one kind."""

    __slots__ = ("spec", "status")

    def __init__(self, kind: str) -> None:
        spec, status = get_args(KINDS[kind])
        self.spec = msgspec.json.Decoder[msgspec.Struct](spec)
        self.status = msgspec.json.Decoder[msgspec.Struct](status)


@cache
def _shape(kind: str) -> _Shape:
    return _Shape(kind)


def text(value: object) -> str:
    """*value* as JSON text."""
    return msgspec.json.encode(value).decode()


def moment(at: datetime) -> str:
    """*at* as text that sorts as time does; without a zone it is taken as UTC."""
    at = at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return at.isoformat(timespec="microseconds")


def hour(at: datetime) -> str:
    """The hour that *at* lies in."""
    return moment(at)[:13]


class Draft:
    """A resource on its way in: its documents encoded, and read back as a reader will find them."""

    __slots__ = ("deleted_at", "labels", "resource", "spec", "status")

    def __init__(self, resource: AnyResource) -> None:
        """:raise Invalid: when a reader could not read it: an unknown kind, or a document that is not of that kind."""
        if resource.kind not in KINDS:
            raise Invalid(f"nothing is of kind {resource.kind!r}", field="kind")
        shape = _shape(resource.kind)
        try:
            self.labels, self.spec, self.status = text(resource.labels), text(resource.spec), text(resource.status)
            labels, spec, status = (
                _labels.decode(self.labels),
                shape.spec.decode(self.spec),
                shape.status.decode(self.status),
            )
        except (msgspec.ValidationError, UnicodeEncodeError, TypeError) as error:
            raise Invalid(f"{resource.kind} {resource.name!r} cannot be stored: {error}") from error
        self.deleted_at = None if resource.deleted_at is None else moment(resource.deleted_at)
        # Objects of its own: what the caller does to the draft afterwards is not what was stored.
        self.resource = msgspec.structs.replace(resource, labels=labels, spec=spec, status=status)

    def parameters(self) -> dict[str, object]:
        """The columns of its row."""
        it = self.resource
        return {
            "kind": it.kind,
            "id": it.id,
            "name": it.name,
            "project": it.project,
            "labels": self.labels,
            "generation": it.generation,
            "revision": it.revision,
            "created_at": moment(it.created_at),
            "deleted_at": self.deleted_at,
            "spec": self.spec,
            "status": self.status,
        }


def resource_of(row: Row) -> AnyResource:
    """The resource in *row*, whose columns are those of the table, in order.

    :raise Internal: when this version cannot read it.
    """
    kind, id, name, project, labels, generation, revision, created_at, deleted_at, spec, status = row
    try:
        shape = _shape(kind)
        return Resource(
            kind=kind,
            id=id,
            name=name,
            project=project,
            labels=_labels.decode(labels),
            generation=generation,
            revision=revision,
            created_at=datetime.fromisoformat(created_at),
            deleted_at=None if deleted_at is None else datetime.fromisoformat(deleted_at),
            spec=shape.spec.decode(spec),
            status=shape.status.decode(status),
        )
    except (KeyError, msgspec.DecodeError, ValueError) as error:
        raise _unreadable(f"{kind} {id}", error) from error


def change_of(row: Row) -> Change:
    """The change in *row*, whose columns are those of the log, in order.

    :raise Internal: when this version cannot read it.
    """
    revision, at, action, kind, id, project, name, resource = row
    try:
        return Change(
            revision=revision,
            at=datetime.fromisoformat(at),
            action=action,
            kind=kind,
            id=id,
            project=project,
            name=name,
            resource=decode(kind, resource),
        )
    except (KeyError, msgspec.DecodeError, ValueError) as error:
        raise _unreadable(f"change {revision} of {kind} {id}", error) from error


def _unreadable(what: str, error: Exception) -> Internal:
    return Internal(f"{what} cannot be read from the store: {error}", hint="was it written by a newer version?")
