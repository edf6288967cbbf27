"""Bringing a database to the newest schema. Alembic is imported only when there is something to do."""

from pathlib import Path

from sqlalchemy import Connection

from lamella.model.errors import Unavailable
from lamella.store.session import Session

NEWEST = "0001"
KNOWN = frozenset({"0001"})

MIGRATIONS = Path(__file__).parent / "migrations"


def version(session: Session, has_schema: str) -> str:
    """The schema's version; empty when there is none yet."""
    if session.one(has_schema) is None:
        return ""
    row = session.one("SELECT version_num FROM alembic_version")
    return "" if row is None else row[0]


def check(found: str) -> bool:
    """Whether *found* is the newest.

    :raise Unavailable: when it was made by a newer version than this.
    """
    if found and found not in KNOWN:
        raise Unavailable(
            f"the store has schema {found}, and this version knows {NEWEST}",
            hint="run the version that made it, or a newer one",
        )
    return found == NEWEST


def migrate(connection: Connection) -> None:
    """Run what is missing, in *connection*'s transaction: all of it or nothing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
