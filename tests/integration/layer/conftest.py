"""A whole layer for a test, shared by the tests of one module."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house import LayerUnderTest, busybox_root, layer_in, named_netns


@pytest.fixture(scope="session")
def netns() -> Iterator[str]:
    with named_netns(f"lamella-t{os.getpid()}") as name:
        yield name


@pytest.fixture(scope="session")
def root_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("image") / "busybox.tar")


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory, netns: str, root_tar: Path) -> Iterator[LayerUnderTest]:
    """A layer with the image ``busybox``."""
    with layer_in(tmp_path_factory.mktemp("layer") / "home", netns) as made:
        made.lamella("image", "import", str(root_tar), "--name", "busybox")
        yield made
