"""The pools of files: the power is cut while volumes are made, written, kept, cloned, resized, restored and removed.

Steps at random are done by the driver to a pool on a disk that logs its writes. Then cuts at random: what was acknowledged before the cut
is there, the step that was under way is as before it or as after it and can be asked again, what was deleted does not come back, and
nothing half made is left. ``LAMELLA_CUTS`` is how many for each pool, ``LAMELLA_SEED`` which.
"""

import mmap
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from contract_lab import Lab
from power_disk import BTRFS, EXT4, XFS, Filesystem, PowerDisk, Start
from power_model import Step, Story, World
from power_pool import act, differs, half_made

CUTS = int(os.environ.get("LAMELLA_CUTS", "16"))
SEED = int(os.environ.get("LAMELLA_SEED", "4"))
STEPS = 30 + CUTS // 10
DIRECTORY = "lamella.host.storage.directory:DirectoryDriver"
BTRFS_DRIVER = "lamella.host.storage.btrfs:BtrfsDriver"


@dataclass(frozen=True)
class Done:
    """A step, what was true before it, and how long the log was when it was asked for and acknowledged."""

    step: Step
    before: World
    asked: int
    acknowledged: int


def has(filesystem: Filesystem) -> None:
    """Skips where this kernel has it not."""
    subprocess.run(["modprobe", "-q", filesystem.kind], check=False)
    if filesystem.kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {filesystem.kind}")


def test_the_disk_loses_what_was_not_flushed(powered: Start) -> None:
    """Else no test here could fail."""
    disk = powered(EXT4)
    with (disk.place / "kept").open("wb") as file:
        file.write(b"kept")
        file.flush()
        os.fsync(file.fileno())
    before = disk.moment()
    descriptor = os.open(disk.place / "kept", os.O_RDWR | os.O_DIRECT)
    # Past the page cache, without a flush: complete, and in the disk's cache alone.
    with mmap.mmap(-1, 4096) as page:
        page.write(b"late".ljust(4096))
        os.pwritev(descriptor, [page], 0)
    os.close(descriptor)
    written = disk.moment()
    assert written > before
    disk.stop()
    chance = random.Random(SEED)
    for keep, content in ((0.0, b"kept"), (1.0, b"late")):
        with disk.after(written, keep, chance, between=False):
            assert (disk.place / "kept").read_bytes()[:4] == content
    assert disk.tally.lost


@pytest.mark.parametrize(
    ("driver", "filesystem"),
    [(DIRECTORY, EXT4), (DIRECTORY, XFS), (BTRFS_DRIVER, BTRFS)],
    ids=["directory-ext4", "directory-xfs", "btrfs"],
)
async def test_nothing_acknowledged_is_lost(
    powered: Start, tmp_path: Path, driver: str, filesystem: Filesystem
) -> None:
    has(filesystem)
    disk = powered(filesystem)
    lab = Lab(name=filesystem.kind, driver=driver, path=str(disk.place / "pool"), scratch=tmp_path)
    chance = random.Random(SEED)
    done = await tell(lab, disk.moment, Story(chance))
    disk.stop()
    for moment, index in sorted(moments(disk, done, chance)):
        one = done[index]
        between = moment < one.acknowledged
        # Now and then everything that was not flushed is lost, or nothing but the order of things.
        keep = chance.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        with disk.after(moment, keep, chance, between=between):
            try:
                await verify(lab, one, between)
            except AssertionError as error:
                error.add_note(
                    f"{filesystem.kind}: cut at {moment} during {one.step.verb} {one.step.arguments} ({one.asked} … "
                    f"{one.acknowledged}), keep={keep}, seed {SEED}"
                )
                raise


async def tell(lab: Lab, now: Callable[[], int], story: Story) -> list[Done]:
    pool = lab.make()
    await pool.open()
    done: list[Done] = []
    for _ in range(STEPS):
        before = story.world
        step = story.next()
        asked = now()
        await act(lab, pool, step)
        done.append(Done(step, before, asked, now()))
    assert await differs(lab, pool, story.world) == ""
    await pool.close()
    return done


def moments(disk: PowerDisk, done: list[Done], chance: random.Random) -> list[tuple[int, int]]:
    """(how long the log was, which step was the last one that was asked for)."""
    found: list[tuple[int, int]] = []
    while len(found) < CUTS:
        index = chance.randrange(len(done))
        one = done[index]
        within = disk.moments(one.asked, one.acknowledged)
        # At the very moment of the acknowledgement, or at any before.
        moment = one.acknowledged if not within or chance.random() < 0.3 else chance.choice([one.asked, *within])
        found.append((moment, index))
    return found


async def verify(lab: Lab, one: Done, between: bool) -> None:
    pool = lab.make()
    status = await pool.open()
    try:
        assert not [condition for condition in status.conditions if condition.reason == "LeftoversStay"]
        findings = await pool.check(repair=False)
        # Clusters that were taken and never used: room, not content.
        assert all("leaked" in finding.problem for finding in findings), findings
        if findings:
            assert all(finding.mended for finding in await pool.check(repair=True))
            assert await pool.check(repair=False) == []
        assert await half_made(lab, pool) == []
        wrong = await differs(lab, pool, one.step.after)
        if wrong and between:
            wrong = await differs(lab, pool, one.before, one.step) and wrong
        assert not wrong, wrong
        if between:
            await act(lab, pool, one.step)
            assert await differs(lab, pool, one.step.after) == ""
    finally:
        await pool.close()
