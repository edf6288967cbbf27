"""A session on a connection from the pool; one that broke does not go back there."""

from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import Engine

from lamella.store.dialect import Database, Verdict
from lamella.store.session import Session


@contextmanager
def opened(database: Database, engine: Engine) -> Generator[Session]:
    """A session that is undone at the end unless it was committed. Raises what the driver raises."""
    pooled = engine.raw_connection()
    session: Session | None = None
    try:
        assert pooled.dbapi_connection is not None
        session = Session(pooled.dbapi_connection)
        try:
            yield session
        finally:
            session.close()
    finally:
        if session is None or (session.failed and database.verdict(session.failed) is Verdict.LOST):
            # The others in the pool were made to the same server: they are not to be trusted either.
            pooled.invalidate()
            engine.dispose()
        pooled.close()
