"""What the store promises to everybody above it: intent and fact, one transaction at a time; what changed since N.

Six tables: resources, changes, claims, usage, audit, leases. One writer thread for SQLite, the same code by URL for PostgreSQL.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec

from lamella.model.kinds import AnyResource

T = TypeVar("T")


class Change(msgspec.Struct, kw_only=True, frozen=True):
    """One line of the gap-free log. ``resource`` is the state that the change made (for ``deleted``, the last there was)."""

    revision: int
    at: datetime
    action: str  # "created" | "updated" | "deleted"
    kind: str
    id: str
    project: str
    name: str
    resource: AnyResource


class Audit(msgspec.Struct, kw_only=True, frozen=True):
    """Who did what to what, as decided: ``allowed`` or refused."""

    principal: str
    verb: str
    subject: str
    allowed: bool = True
    detail: str = ""


class Page(msgspec.Struct, kw_only=True):
    """``cursor`` asks for what follows; empty at the end. ``revision`` is the store's when the page was read: watch from there."""

    items: list[AnyResource]
    cursor: str
    revision: int


class Transaction(Protocol):
    """All of it happens, durably, or none of it. Used inside ``Store.write``; never kept."""

    def get(self, kind: str, project: str, name: str) -> AnyResource | None: ...

    def by_id(self, id: str) -> AnyResource | None: ...

    def list(self, kind: str, *, project: str | None = None) -> list[AnyResource]: ...

    def insert(self, resource: AnyResource) -> AnyResource:
        """:raise Conflict: when the name is taken in (project, kind). Returns it with its revision."""
        ...

    def update(self, resource: AnyResource, *, expected: int | None = None) -> AnyResource:
        """Write spec, status, labels and deleted_at; ``generation`` grows when the spec differs. An unchanged resource is not written.

        :raise StaleRevision: when *expected* is not the stored revision.
        :raise NotFound: when it is gone.
        """
        ...

    def rename(self, id: str, name: str) -> AnyResource:
        """Give it another name; the spec stays, and so does its generation.

        :raise Conflict: when the name is taken in (project, kind). :raise NotFound: when it is gone.
        """
        ...

    def delete(self, id: str) -> None:
        """Remove the row and every claim that it owns. :raise NotFound: when it is gone."""
        ...

    def claim(self, space: str, key: str, owner: str) -> None:
        """Take the unique *key* in *space* for the resource with id *owner*; one's own claim may be taken again.

        :raise Conflict: when somebody else holds it.
        """
        ...

    def claims(self, space: str) -> dict[str, str]:
        """Every key of *space* with its owner."""
        ...

    def release(self, space: str, key: str, owner: str) -> None: ...

    def audit(self, entry: Audit) -> None: ...


class Store(Protocol):
    """Async face; each call is one database transaction on a thread that is not the loop's."""

    async def open(self) -> None:
        """Connect, migrate to the newest schema. :raise Unavailable: when the database cannot be reached."""
        ...

    async def close(self) -> None: ...

    async def write(self, change: Callable[[Transaction], T]) -> T:
        """Run *change* in one durable transaction; retried when the database asks for that, so it must have no other effect.

        Watchers wake after the commit. Whatever *change* raises rolls everything back and is raised here.
        """
        ...

    async def read(self, look: Callable[[Transaction], T]) -> T:
        """Run *look* on one consistent snapshot."""
        ...

    async def get(self, kind: str, project: str, name: str) -> AnyResource:
        """By name, or by id when *name* has the shape of one. :raise NotFound:"""
        ...

    async def by_id(self, id: str) -> AnyResource:
        """:raise NotFound:"""
        ...

    async def list(
        self,
        kind: str,
        *,
        project: str | None = None,
        labels: dict[str, str] | None = None,
        cursor: str = "",
        limit: int = 1000,
    ) -> Page:
        """In order of id. :raise Invalid: when the cursor is not one of ours."""
        ...

    async def revision(self) -> int: ...

    async def changes(self, since: int, *, limit: int = 1000) -> Sequence[Change]:
        """What happened after *since*, in order. :raise Conflict: when the log no longer reaches back so far."""
        ...

    def watch(self, since: int) -> AsyncIterator[Change]:
        """Every change after *since*, in order, without a gap or a repeat, for as long as one listens."""
        ...

    async def acquire(self, lease: str, holder: str, seconds: float) -> bool:
        """Hold *lease* for *seconds* from now, by the database's clock; true when *holder* has it (again)."""
        ...

    async def release(self, lease: str, holder: str) -> None: ...

    async def add_usage(self, subject: str, meter: str, amount: float, at: datetime) -> None: ...

    async def prune(self, *, keep_changes: int, keep_events: int) -> None:
        """Bound the log and the events: all but the newest *keep_…* go."""
        ...
