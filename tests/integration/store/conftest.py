"""The two real databases: a SQLite file, and a PostgreSQL of our own."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import Postgres, postgres_server

from lamella.store.database import open_store
from lamella.store.store import Store


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database that is empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store/lamella.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_schema()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = open_store(url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def another(url: str) -> AsyncIterator[Callable[[], Any]]:
    """Opens further stores on the same database, as another process would."""
    opened: list[Store] = []

    async def open_another() -> Store:
        store = open_store(url)
        await store.open()
        opened.append(store)
        return store

    yield open_another
    for store in opened:
        await store.close()
