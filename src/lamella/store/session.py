"""One database transaction on one connection, at the level of the driver: SQL goes in, rows come out."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor

from lamella.store.rows import Row

NOTHING: Mapping[str, object] = {}


class Session:
    """Runs statements, and remembers in ``failed`` the first error of the database: after it nothing may be committed.

    ``committing`` tells an error that leaves the outcome open from one that does not.
    """

    __slots__ = ("_connection", "_cursor", "committing", "failed")

    def __init__(self, connection: DBAPIConnection) -> None:
        self._connection = connection
        self._cursor: DBAPICursor = connection.cursor()
        self.failed: Exception | None = None
        self.committing = False

    def run(self, sql: str, parameters: Mapping[str, object] = NOTHING) -> int:
        """How many rows it touched."""
        try:
            self._cursor.execute(sql, parameters)
            return self._cursor.rowcount
        except Exception as error:
            self.failed = self.failed or error
            raise

    def one(self, sql: str, parameters: Mapping[str, object] = NOTHING) -> Row | None:
        self.run(sql, parameters)
        return self._fetch(self._cursor.fetchone)

    def all(self, sql: str, parameters: Mapping[str, object] = NOTHING) -> Sequence[Row]:
        self.run(sql, parameters)
        return self._fetch(self._cursor.fetchall)

    def _fetch(self, fetch: Any) -> Any:
        try:
            return fetch()
        except Exception as error:
            self.failed = self.failed or error
            raise

    def commit(self) -> None:
        self.committing = True
        try:
            self._connection.commit()
        except Exception as error:
            self.failed = self.failed or error
            raise
        self.committing = False

    def close(self) -> None:
        """Undo what was not committed."""
        try:
            self._cursor.close()
            self._connection.rollback()
        except Exception as error:
            self.failed = self.failed or error
