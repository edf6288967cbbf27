"""The envelope that every kind shares: ``spec`` is what was asked, ``status`` is what was seen."""

from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from lamella.model.ids import new_id

SpecT = TypeVar("SpecT", bound=msgspec.Struct)
StatusT = TypeVar("StatusT", bound=msgspec.Struct)

Labels = dict[str, str]


class Condition(msgspec.Struct, kw_only=True):
    """A statement about a resource that programs read by ``reason`` and people by ``message``."""

    type: str
    status: bool
    reason: str
    message: str = ""
    hint: str = ""
    since: datetime | None = None


class Resource(msgspec.Struct, Generic[SpecT, StatusT], kw_only=True):
    """One thing that the layer knows.

    ``generation`` counts changes of ``spec``; ``revision`` is the number of the change that wrote it, unique and growing
    over the whole store. ``deleted_at`` is set when removal was asked: the row goes when its host has let go of it.
    """

    kind: str
    id: str
    name: str
    project: str
    labels: Labels = {}
    generation: int = 1
    revision: int = 0
    created_at: datetime
    deleted_at: datetime | None = None
    spec: SpecT
    status: StatusT


def new_resource(
    kind: str, name: str, spec: SpecT, status: StatusT, *, project: str = "default", labels: Labels | None = None
) -> Resource[SpecT, StatusT]:
    """A resource that no store has seen yet: revision 0, a fresh id, created now (UTC)."""
    return Resource(
        kind=kind,
        id=new_id(kind),
        name=name,
        project=project,
        labels=dict(labels or {}),
        created_at=now(),
        spec=spec,
        status=status,
    )


def now() -> datetime:
    """The time, UTC, to the microsecond."""
    return datetime.now(UTC)
