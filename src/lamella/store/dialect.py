"""Where databases differ, and nothing else: one class a database has all of it."""

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Protocol

from sqlalchemy import Engine, Insert, Table
from sqlalchemy.sql.expression import ColumnElement, Executable

from lamella.model.errors import Invalid, LamellaError
from lamella.store.session import Session

# Threads that read, and connections for them.
READERS = 3


class Verdict(Enum):
    """What an error of the driver means for the transaction that met it."""

    RETRY = "the database asks to try again"
    LOST = "the connection is gone"
    REFUSED = "it will not work a second time either"


class Differences(Protocol):
    """In what SQL says."""

    def insert(self, table: Table) -> Any:
        """An INSERT that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update`` (each dialect has its own type)."""
        ...

    def has_label(self, labels: ColumnElement[Any], key: str, value: str) -> ColumnElement[bool]:
        """Whether the document *labels* has the pair in the parameters named *key* and *value*."""
        ...

    def announced(self, change: Insert) -> Executable:
        """*change*, which tells other processes when it commits, where the database can do that."""
        ...

    def clock(self) -> ColumnElement[float]:
        """Seconds since 1970, as the database sees it at this statement."""
        ...


class Database(Differences, Protocol):
    """In how one connects, begins, fails, and hears of other processes."""

    writer: Engine
    reader: Engine
    has_schema: str

    def prepare(self) -> None:
        """What has to be there before the first connection."""
        ...

    def begin_write(self, session: Session) -> None:
        """Begin, and keep every other writer out until the end: revisions are gap-free and in the order of commits."""
        ...

    def begin_read(self, session: Session) -> None:
        """Begin; everything that is read is of one moment."""
        ...

    def verdict(self, error: BaseException) -> Verdict: ...

    def explain(self, error: BaseException) -> LamellaError:
        """*error* in our words, with what to do about it."""
        ...

    async def hear(self, look: Callable[[], Awaitable[None]]) -> None:
        """Call *look* soon after another process committed, until cancelled. A call too many does no harm."""
        ...


def unfit(error: BaseException) -> LamellaError | None:
    """What to say when a value never came to the database, because no database could hold it."""
    if isinstance(error, UnicodeEncodeError | OverflowError):
        return Invalid(f"this cannot be stored or looked for: {error}")
    return None
