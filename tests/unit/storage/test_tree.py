"""Trees are measured and removed whatever shape they have."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.host.storage import tree

NAMES = st.sampled_from(["a", "b", ".1", ".2", "\udcff", "with space", "new\nline"])
SHAPES = st.recursive(st.just(b"x" * 5000), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=25)


def build(root: Path, shape: object) -> None:
    if isinstance(shape, dict):
        root.mkdir()
        for name, inner in shape.items():
            build(root / name, inner)
    else:
        assert isinstance(shape, bytes)
        root.write_bytes(shape)


def blocks(root: Path) -> int:
    return 512 * sum(path.lstat().st_blocks for path in (root, *root.rglob("*")))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(shape=st.dictionaries(NAMES, SHAPES, max_size=4))
def test_any_shape_is_measured_as_its_parts_and_cleared_whole(tmp_path: Path, shape: object) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    build(root, shape)
    assert tree.allocated(root) == blocks(root)
    tree.clear(root)
    assert list(root.iterdir()) == []


def test_depth_beyond_path_max_and_recursion_limits(tmp_path: Path) -> None:
    depth = 3000
    descriptor = os.open(tmp_path, os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=descriptor)
        below = os.open("deep", os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    per_directory = tmp_path.stat().st_blocks * 512
    assert tree.allocated(tmp_path) >= depth * min(per_directory, 512)
    tree.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"y" * 100_000)
    root = tmp_path / "root"
    root.mkdir()
    (root / "escape").symlink_to(outside)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    assert tree.allocated(root) < 100_000
    tree.clear(root)
    assert (outside / "kept").exists()
    assert list(root.iterdir()) == []


def test_a_hard_link_counts_once_and_a_hole_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"z" * 1_000_000)
    single = tree.allocated(tmp_path)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert tree.allocated(tmp_path) == single
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert tree.allocated(tmp_path) - single < 100_000


def test_a_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tree.allocated(tmp_path / "absent")
