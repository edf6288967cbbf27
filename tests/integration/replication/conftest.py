"""Two pools and a writer for each test (``carry_lab.py``)."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "volumes"))

from carry_lab import CarryLab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # uvloop masks signals of its own: an alarm would never be heard (see tests/integration/vm/conftest.py).
    for item in items:
        if "integration/replication" in str(item.path):
            item.add_marker(pytest.mark.timeout(600, method="thread"))


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest_asyncio.fixture
async def lab() -> AsyncIterator[CarryLab]:
    lab = CarryLab()
    await lab.begin()
    yield lab
    await lab.end()
