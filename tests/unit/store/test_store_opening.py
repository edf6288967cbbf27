"""Opening: by URL, to the newest schema, without what is not needed."""

import asyncio
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from lamella.model.errors import Corrupt, Invalid, Unavailable, Unsupported
from lamella.store import migration
from lamella.store.database import open_store
from lamella.store.rows import hour, moment
from lamella.store.schema import METADATA


async def opened_and_closed(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    try:
        await store.open()
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("", Invalid),
        ("not a url", Invalid),
        ("sqlite://", Invalid),
        ("sqlite:///relative.db", Invalid),
        ("sqlite:////x.db?nonsense=1&timeout=x", Invalid),
        ("postgresql://h:port/db", Invalid),
        ("mysql://u@h/db", Unsupported),
    ],
)
async def test_what_is_no_url_of_a_store_is_refused_with_a_hint(url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        open_store(url)
    assert caught.value.hint  # type: ignore[attr-defined]


async def test_the_migrations_make_the_schema_and_the_newest_is_known(tmp_path: Path) -> None:
    await opened_and_closed(tmp_path / "a.db")
    with create_engine(f"sqlite:///{tmp_path}/a.db").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == migration.NEWEST
    config = Config()
    config.set_main_option("script_location", str(migration.MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == migration.NEWEST
    assert {script.revision for script in scripts.walk_revisions()} == migration.KNOWN


async def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    await opened_and_closed(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(Unavailable, match="9999"):
        await opened_and_closed(tmp_path / "a.db")


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(Corrupt):
        await opened_and_closed(tmp_path / "a.db")
    with pytest.raises(Unavailable):
        await opened_and_closed(tmp_path / "a.db" / "below-a-file.db")


def test_opening_an_up_to_date_store_imports_neither_alembic_nor_another_driver(tmp_path: Path) -> None:
    asyncio.run(opened_and_closed(tmp_path / "a.db"))
    program = (
        "import asyncio, sys\n"
        "from lamella.store.database import open_store\n"
        "async def main():\n"
        "    store = open_store(sys.argv[1])\n"
        "    await store.open()\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
        "print(sorted({'alembic', 'psycopg', 'mako', 'sqlalchemy.orm'} & set(sys.modules)))\n"
    )
    url = f"sqlite:///{tmp_path}/a.db"
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout == "[]\n"


def test_moments_sort_as_time_does() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = [start + timedelta(microseconds=step) for step in (0, 1, 10, 999_999, 1_000_000, 3_600_000_000)]
    assert sorted(map(moment, reversed(times))) == [moment(at) for at in times]
    assert moment(start.astimezone(timezone(timedelta(hours=5)))) == moment(start.replace(tzinfo=None)) == moment(start)
    assert hour(start) == "2026-01-01T00"
