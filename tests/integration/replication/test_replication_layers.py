"""Sources that are chains of layers, and changes that lie here and there: a copy has what every layer has, and nothing else."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from carry_lab import BLOCK, SIZE, CarryLab
from volumes_lab import new_volume

from lamella.model.instance import Isolation
from lamella.model.replication import ReplicationMode
from lamella.model.storage import Volume
from lamella.model.storage_requests import CreateVolume, MoveVolume

# 1500 blocks, so that every 25th is an extent of its own, and more of them than one cycle has jobs.
BLOCKS, STRIDE = 1500, 25
_WRITE = """
import os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_SYNC)
for block in range(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])):
    os.pwrite(file, bytes([int(sys.argv[5])]) * 4096, block * 4096)
"""


async def write(lab: CarryLab, disk: Path, value: int, *, first: int = 0, stride: int = 1) -> None:
    """Every block, or every *stride*-th one, is full of *value*."""
    argv = [sys.executable, "-c", _WRITE, str(disk), *map(str, (first, BLOCKS, stride, value))]
    await asyncio.to_thread(subprocess.run, argv, check=True, timeout=90)


async def layers(lab: CarryLab) -> tuple[Volume, Path, bytes]:
    """A volume, open, of which every layer has something that the others have not."""
    source = await lab.volume()
    disk = (await lab.attach(source, "inst_writer", Isolation.UNIKERNEL)).path
    wanted = bytearray(SIZE)
    for value, stride in ((1, 1), (2, 7), (3, 11)):
        await write(lab, disk, value, stride=stride)
        _note(wanted, value, stride=stride)
        await lab.take(source)
    return source, disk, bytes(wanted)


def _note(content: bytearray, value: int, *, first: int = 0, stride: int = 1) -> None:
    for block in range(first, BLOCKS, stride):
        content[block * BLOCK : (block + 1) * BLOCK] = bytes([value]) * BLOCK


def differing(one: bytes, other: bytes) -> list[int]:
    """Numbers of the blocks that are not alike."""
    cut = [slice(at, at + BLOCK) for at in range(0, len(one), BLOCK)]
    return [part.start // BLOCK for part in cut if one[part] != other[part]]


async def test_cycles_copy_what_changed_wherever_it_lies(lab: CarryLab) -> None:
    source, disk, wanted = await layers(lab)
    replication, target = lab.replication(source, every=0.5)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current")
    content = bytearray(wanted)
    for value in (4, 5, 6):
        done = (await lab.status(replication)).cycles
        await write(lab, disk, value, first=value, stride=STRIDE)
        _note(content, value, first=value, stride=STRIDE)
        # A cycle that began before the last write may be under way.
        await lab.until(replication, "current", cycles=done + 2)
    base = lab.journal(replication).base
    assert differing(bytes(content), await lab.content("far", target.id, base)) == []
    await lab.closed()
    await lab.promote(replication, source, target)
    assert differing(bytes(content), await lab.content("far", target.id)) == []


@pytest.mark.parametrize("open", [True, False])
async def test_a_pair_has_what_every_layer_has(lab: CarryLab, open: bool) -> None:
    source, _, wanted = await layers(lab)
    if not open:
        await lab.closed()
    replication, target = lab.replication(source, ReplicationMode.SYNC)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current")
    assert differing(wanted, await lab.content("far", target.id)) == []


async def test_a_clone_moves_with_what_it_shares(lab: CarryLab) -> None:
    source, _, wanted = await layers(lab)
    snapshot = await lab.take(source)
    clone = new_volume("clone", SIZE)
    await lab.ask(CreateVolume(volume=clone, source=source, snapshot=snapshot), object)
    await lab.ask(MoveVolume(volume=clone, pool=lab.far), object)
    assert differing(wanted, await lab.content("far", clone.id)) == []
