"""Every statement, built with SQLAlchemy Core and compiled once for one dialect: a hot path pays for no building."""

from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import BindParameter, Dialect, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.sql.expression import ClauseElement, ColumnElement, Executable

from lamella.store.dialect import Differences
from lamella.store.schema import AUDIT, CHANGES, CLAIMS, LEASES, RESOURCES, USAGE


def _at(name: str) -> BindParameter[Any]:
    return bindparam(name)


class Statements:
    """SQL text by name; parameters are named after columns unless a comment says more."""

    def __init__(self, dialect: Dialect, differences: Differences) -> None:
        self._dialect = dialect
        self._differ = differences
        self.page = lru_cache(maxsize=64)(self._page)

    def _compile(self, statement: Executable) -> str:
        assert isinstance(statement, ClauseElement)
        return str(statement.compile(dialect=self._dialect))

    @cached_property
    def head(self) -> str:
        """The newest revision, or NULL."""
        return self._compile(select(func.max(CHANGES.c.revision)))

    @cached_property
    def tail(self) -> str:
        """The oldest revision that the log has, or NULL."""
        return self._compile(select(func.min(CHANGES.c.revision)))

    # Resources

    @cached_property
    def by_id(self) -> str:
        return self._compile(select(RESOURCES).where(RESOURCES.c.id == _at("id")))

    @cached_property
    def by_name(self) -> str:
        same = [RESOURCES.c[column] == _at(column) for column in ("kind", "project", "name")]
        return self._compile(select(RESOURCES).where(*same))

    @cached_property
    def insert_resource(self) -> str:
        """Touches no row when the id or the name is taken."""
        return self._compile(self._differ.insert(RESOURCES).on_conflict_do_nothing())

    @cached_property
    def update_resource(self) -> str:
        """``key`` is the id."""
        columns = ("labels", "generation", "revision", "deleted_at", "spec", "status")
        values = {column: _at(column) for column in columns}
        return self._compile(update(RESOURCES).where(RESOURCES.c.id == _at("key")).values(values))

    @cached_property
    def rename_resource(self) -> str:
        """``key`` is the id."""
        values = {column: _at(column) for column in ("name", "revision")}
        return self._compile(update(RESOURCES).where(RESOURCES.c.id == _at("key")).values(values))

    @cached_property
    def delete_resource(self) -> str:
        return self._compile(delete(RESOURCES).where(RESOURCES.c.id == _at("id")))

    def _page(self, projects: bool, labels: int, bounded: bool) -> str:
        """Of one ``kind``, in order of id; also of one ``project``, with ``labels`` pairs (``key0``, ``value0``, …), and when
        *bounded* after the id ``cursor`` not more than ``limit``."""
        query: Select[Any] = select(RESOURCES).where(RESOURCES.c.kind == _at("kind")).order_by(RESOURCES.c.id)
        if projects:
            query = query.where(RESOURCES.c.project == _at("project"))
        for index in range(labels):
            same: ColumnElement[bool] = self._differ.has_label(RESOURCES.c.labels, f"key{index}", f"value{index}")
            query = query.where(same)
        if bounded:
            query = query.where(RESOURCES.c.id > _at("cursor")).limit(_at("limit")).offset(_at("skip"))
        return self._compile(query)

    # The log

    @cached_property
    def insert_change(self) -> str:
        return self._compile(self._differ.announced(insert(CHANGES)))

    @cached_property
    def changes(self) -> str:
        """After ``since``, not more than ``limit`` (``skip`` is 0)."""
        query = select(CHANGES).where(CHANGES.c.revision > _at("since")).order_by(CHANGES.c.revision)
        return self._compile(query.limit(_at("limit")).offset(_at("skip")))

    @cached_property
    def prune_changes(self) -> str:
        """Up to and with ``last``."""
        return self._compile(delete(CHANGES).where(CHANGES.c.revision <= _at("last")))

    @cached_property
    def newest_surplus(self) -> str:
        """The id of the newest of ``kind`` that is not among the newest ``skip`` (``limit`` is 1)."""
        query = select(RESOURCES.c.id).where(RESOURCES.c.kind == _at("kind")).order_by(RESOURCES.c.id.desc())
        return self._compile(query.limit(_at("limit")).offset(_at("skip")))

    @cached_property
    def prune_resources(self) -> str:
        """The oldest ``limit`` of ``kind`` with an id up to and with ``last`` (``skip`` is 0)."""
        oldest = (
            select(RESOURCES.c.id)
            .where(RESOURCES.c.kind == _at("kind"), RESOURCES.c.id <= _at("last"))
            .order_by(RESOURCES.c.id)
            .limit(_at("limit"))
            .offset(_at("skip"))
        )
        return self._compile(delete(RESOURCES).where(RESOURCES.c.id.in_(oldest)))

    # Claims

    @cached_property
    def claim(self) -> str:
        """Touches no row when the key is taken."""
        return self._compile(self._differ.insert(CLAIMS).on_conflict_do_nothing())

    @cached_property
    def holder(self) -> str:
        same = [CLAIMS.c[column] == _at(column) for column in ("space", "key")]
        return self._compile(select(CLAIMS.c.owner).where(*same))

    @cached_property
    def claims(self) -> str:
        return self._compile(
            select(CLAIMS.c.key, CLAIMS.c.owner).where(CLAIMS.c.space == _at("space")).order_by(CLAIMS.c.key)
        )

    @cached_property
    def release_claim(self) -> str:
        same = [CLAIMS.c[column] == _at(column) for column in ("space", "key", "owner")]
        return self._compile(delete(CLAIMS).where(*same))

    @cached_property
    def release_claims(self) -> str:
        return self._compile(delete(CLAIMS).where(CLAIMS.c.owner == _at("owner")))

    # The rest

    @cached_property
    def audit(self) -> str:
        columns = [column for column in AUDIT.c if column is not AUDIT.c.number]
        return self._compile(insert(AUDIT).values({column: _at(column.name) for column in columns}))

    @cached_property
    def add_usage(self) -> str:
        added = self._differ.insert(USAGE)
        total = USAGE.c.amount + added.excluded.amount
        return self._compile(
            added.on_conflict_do_update(index_elements=["subject", "meter", "hour"], set_={"amount": total})
        )

    @cached_property
    def acquire(self) -> str:
        """For ``seconds`` from now; gives a row when the lease was free, had run out, or was the holder's own."""
        clock = self._differ.clock()
        wanted = self._differ.insert(LEASES).values(
            name=_at("name"), holder=_at("holder"), expires=clock + bindparam("seconds", type_=LEASES.c.expires.type)
        )
        free = (LEASES.c.holder == wanted.excluded.holder) | (LEASES.c.expires <= clock)
        taken = {"holder": wanted.excluded.holder, "expires": wanted.excluded.expires}
        return self._compile(
            wanted.on_conflict_do_update(index_elements=["name"], set_=taken, where=free).returning(LEASES.c.holder)
        )

    @cached_property
    def release_lease(self) -> str:
        return self._compile(delete(LEASES).where(LEASES.c.name == _at("name"), LEASES.c.holder == _at("holder")))
