"""One fresh world a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from network_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    try:
        yield world
    finally:
        world.close()
