"""A whole layer whose home is on the disk that is cut: what the command said is done is known and there when the machine is on again.

Control's rows, the host's records and the pool have to agree after each cut: ``fsck`` finds nothing but room to give back.
"""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from power_disk import EXT4, PowerDisk, Start
from power_home import forget_boot
from tests.house import LayerUnderTest, named_netns

pytestmark = [pytest.mark.root, pytest.mark.extended, pytest.mark.timeout(600, method="thread")]

CUTS = int(os.environ.get("LAMELLA_CUTS", "12")) // 2
SEED = int(os.environ.get("LAMELLA_SEED", "4"))
MIB = 1 << 20
# Volumes by name: their bytes, and their snapshots.
World = dict[str, tuple[int, frozenset[str]]]

NONE = frozenset[str]()
STORY: list[tuple[str, World]] = [
    ("volume create one --size 16MiB", {"one": (16 * MIB, NONE)}),
    ("snapshot create one first", {"one": (16 * MIB, frozenset({"first"}))}),
    (
        "volume create two --from one@first",
        {"one": (16 * MIB, frozenset({"first"})), "two": (16 * MIB, NONE)},
    ),
    (
        "snapshot create one second",
        {"one": (16 * MIB, frozenset({"first", "second"})), "two": (16 * MIB, NONE)},
    ),
    (
        "volume resize two 24MiB",
        {"one": (16 * MIB, frozenset({"first", "second"})), "two": (24 * MIB, NONE)},
    ),
    ("snapshot rm one@second", {"one": (16 * MIB, frozenset({"first"})), "two": (24 * MIB, NONE)}),
    ("volume rm two", {"one": (16 * MIB, frozenset({"first"}))}),
]


@dataclass(frozen=True)
class Done:
    command: str
    before: World
    after: World
    asked: int
    acknowledged: int


@pytest.fixture
def netns() -> Iterator[str]:
    with named_netns(f"lamella-t{os.getpid()}p") as name:
        yield name


def test_what_the_layer_acknowledged_is_there(powered: Start, netns: str) -> None:
    disk = powered(EXT4)
    done = tell(disk, netns)
    disk.stop()
    chance = random.Random(SEED)
    for moment, index in sorted(cuts(disk, done, chance)):
        one = done[index]
        between = moment < one.acknowledged
        keep = chance.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        with disk.after(moment, keep, chance, between=between) as place:
            forget_boot(place / "h")
            layer = LayerUnderTest(place / "h", netns)
            try:
                layer.start()
                verify(layer, one, between)
            except AssertionError as error:
                error.add_note(f"cut at {moment} during {one.command}, keep={keep}, seed {SEED}")
                raise
            finally:
                layer.purge()


def tell(disk: PowerDisk, netns: str) -> list[Done]:
    home = disk.place / "h"
    home.mkdir(mode=0o700)
    layer = LayerUnderTest(home, netns)
    done: list[Done] = []
    try:
        layer.start()
        before: World = {}
        for command, after in STORY:
            asked = disk.moment()
            layer.lamella(*command.split())
            done.append(Done(command, before, after, asked, disk.moment()))
            before = after
        return done
    finally:
        layer.purge()


def cuts(disk: PowerDisk, done: list[Done], chance: random.Random) -> list[tuple[int, int]]:
    """(how long the log was, which command was the last one that was asked)."""
    found: list[tuple[int, int]] = []
    first = chance.randrange(len(done))
    for number in range(CUTS):
        index = (first + number) % len(done)
        one = done[index]
        moments = disk.moments(one.asked, one.acknowledged)
        at_once = not moments or chance.random() < 0.3
        found.append((one.acknowledged if at_once else chance.choice([one.asked, *moments]), index))
    return found


def verify(layer: LayerUnderTest, one: Done, between: bool) -> None:
    if between:
        # It may be done, not done, or begun: then it goes on by itself. Asked again it is done, or was.
        layer.lamella(*one.command.split(), check=False)
    seen = world(layer)
    assert seen == one.after
    said = layer.out("fsck", "--repair", check=False)
    wrong = [line for line in said.splitlines() if "leaked" not in line and "vol_" in line]
    assert "nothing found" in said or not wrong, said


def world(layer: LayerUnderTest) -> World:
    volumes = json.loads(layer.out("volume", "ls", "-o", "json"))
    snapshots = json.loads(layer.out("snapshot", "ls", "-o", "json"))
    assert all(row["status"]["phase"] == "ready" for row in [*volumes, *snapshots]), (volumes, snapshots)
    return {
        row["name"]: (
            row["status"]["size"],
            frozenset(kept["name"].rpartition("@")[2] for kept in snapshots if kept["spec"]["volume"] == row["id"]),
        )
        for row in volumes
    }
