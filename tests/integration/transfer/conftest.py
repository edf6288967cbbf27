"""A wing of its own for each test (``tests/integration/volumes/volumes_lab.py``)."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "volumes"))

from volumes_lab import VolumesLab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # uvloop masks signals of its own: an alarm would never be heard (see tests/integration/vm/conftest.py).
    for item in items:
        if "integration/transfer" in str(item.path):
            item.add_marker(pytest.mark.timeout(600, method="thread"))


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest_asyncio.fixture
async def lab() -> AsyncIterator[VolumesLab]:
    lab = VolumesLab()
    await lab.wing.open()
    yield lab
    await lab.end()
