"""What a pool has to hold: volumes as values, and steps that change them. No I/O; a step tells what is true before and after it."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

CELL = 16 << 10
MIB = 1 << 20
SIZES = (2 * MIB, 3 * MIB, 4 * MIB)


@dataclass(frozen=True)
class Disk:
    """A block volume or one of its snapshots: the byte that fills each cell."""

    cells: bytes

    @property
    def size(self) -> int:
        return len(self.cells) * CELL

    def runs(self, unsure: range) -> list[tuple[int, int, int]]:
        """(byte, offset, length) of what has to be read; cells of *unsure* may hold anything."""
        found: list[tuple[int, int, int]] = []
        for index, byte in enumerate(self.cells):
            if index in unsure:
                continue
            last = found[-1] if found else None
            if last is not None and last[0] == byte and last[1] + last[2] == index * CELL:
                found[-1] = (byte, last[1], last[2] + CELL)
            else:
                found.append((byte, index * CELL, CELL))
        return found


@dataclass(frozen=True)
class Tree:
    """A filesystem volume or one of its snapshots: what its files hold."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])


@dataclass(frozen=True)
class Kept:
    """A volume: what it is now, and its snapshots, oldest first. ``clone_of`` is (volume, snapshot)."""

    now: Disk | Tree
    snapshots: dict[str, Disk | Tree] = field(default_factory=dict[str, "Disk | Tree"])
    clone_of: tuple[str, str] | None = None


World = dict[str, Kept]


@dataclass(frozen=True)
class Step:
    """``verb`` is the driver's (``arguments`` as it takes them), or ``write``, ``put`` or ``unlink``: a writer's, who waits for the disk.

    ``unsure`` are cells of volume ``id``, and ``paths`` its files, that may hold anything while the step is under way.
    """

    verb: str
    arguments: dict[str, Any]
    id: str
    after: World
    unsure: range = range(0)
    paths: frozenset[str] = frozenset()


class Story:
    """Steps at random, each of which can be done after those before it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.world: World = {}
        self._byte = 0

    def next(self) -> Step:
        while True:
            step = self._chance.choice(_KINDS)(self)
            if step is not None:
                self.world = step.after
                return step

    def _fresh(self) -> int:
        self._byte = self._byte % 255 + 1
        return self._byte

    def _some(self, kind: type[Disk] | type[Tree] | None = None, *, kept: bool = False) -> str | None:
        """A volume, of that form, with a snapshot."""
        fit = [
            id
            for id, volume in self.world.items()
            if (kind is None or isinstance(volume.now, kind)) and (volume.snapshots or not kept)
        ]
        return self._chance.choice(fit) if fit else None

    def _standing_on(self, id: str, snapshot: str | None = None) -> bool:
        return any(
            volume.clone_of is not None and volume.clone_of[0] == id and snapshot in (None, volume.clone_of[1])
            for volume in self.world.values()
        )

    def _with(self, id: str, volume: Kept | None) -> World:
        others = {key: value for key, value in self.world.items() if key != id}
        return others if volume is None else {**others, id: volume}

    def create(self) -> Step | None:
        if len(self.world) >= 5:
            return None
        id = new_id("volume")
        if self._chance.random() < 0.3:
            form, size, now = VolumeForm.FILESYSTEM, 0, Tree()
        else:
            size = self._chance.choice(SIZES)
            form, now = VolumeForm.BLOCK, Disk(bytes(size // CELL))
        return Step("create", {"id": id, "form": form, "size": size}, id, self._with(id, Kept(now)))

    def clone(self) -> Step | None:
        source = self._some(kept=True)
        if source is None or len(self.world) >= 5:
            return None
        id, snapshot = new_id("volume"), self._chance.choice(list(self.world[source].snapshots))
        kept = self.world[source].snapshots[snapshot]
        form = VolumeForm.BLOCK if isinstance(kept, Disk) else VolumeForm.FILESYSTEM
        on = (source, snapshot) if isinstance(kept, Disk) else None
        arguments = {"id": id, "form": form, "size": 0, "source": (source, snapshot)}
        return Step("create", arguments, id, self._with(id, Kept(kept, clone_of=on)))

    def write(self) -> Step | None:
        id = self._some(Disk)
        if id is None:
            return None
        volume = self.world[id]
        assert isinstance(volume.now, Disk)
        cells = bytearray(volume.now.cells)
        first = self._chance.randrange(len(cells))
        last = min(len(cells), first + self._chance.choice((1, 1, 4, 16)))
        byte = self._fresh()
        cells[first:last] = bytes([byte]) * (last - first)
        after = self._with(id, replace(volume, now=Disk(bytes(cells))))
        arguments = {"byte": byte, "offset": first * CELL, "length": (last - first) * CELL}
        return Step("write", arguments, id, after, unsure=range(first, last))

    def put(self) -> Step | None:
        id = self._some(Tree)
        if id is None:
            return None
        volume = self.world[id]
        assert isinstance(volume.now, Tree)
        name = f"file{self._chance.randrange(6)}"
        content = bytes([self._fresh()]) * self._chance.choice((10, 5000, 40000))
        after = self._with(id, replace(volume, now=Tree({**volume.now.files, name: content})))
        return Step("put", {"name": name, "content": content}, id, after, paths=frozenset({name, f"{name}.new"}))

    def unlink(self) -> Step | None:
        id = self._some(Tree)
        if id is None:
            return None
        volume = self.world[id]
        assert isinstance(volume.now, Tree)
        if not volume.now.files:
            return None
        name = self._chance.choice(list(volume.now.files))
        files = {key: value for key, value in volume.now.files.items() if key != name}
        return Step("unlink", {"name": name}, id, self._with(id, replace(volume, now=Tree(files))))

    def snapshot(self) -> Step | None:
        id = self._some()
        if id is None or len(self.world[id].snapshots) >= 4:
            return None
        volume, snapshot = self.world[id], new_id("snapshot")
        after = self._with(id, replace(volume, snapshots={**volume.snapshots, snapshot: volume.now}))
        return Step("snapshot", {"id": id, "snapshot": snapshot}, id, after)

    def drop(self) -> Step | None:
        id = self._some(kept=True)
        if id is None:
            return None
        volume = self.world[id]
        snapshot = self._chance.choice(list(volume.snapshots))
        if self._standing_on(id, snapshot):
            return None
        left = {key: value for key, value in volume.snapshots.items() if key != snapshot}
        return Step("drop", {"id": id, "snapshot": snapshot}, id, self._with(id, replace(volume, snapshots=left)))

    def restore(self) -> Step | None:
        id = self._some(kept=True)
        if id is None:
            return None
        volume = self.world[id]
        snapshot = self._chance.choice(list(volume.snapshots))
        after = self._with(id, replace(volume, now=volume.snapshots[snapshot]))
        return Step("restore", {"id": id, "snapshot": snapshot}, id, after)

    def resize(self) -> Step | None:
        id = self._some(Disk)
        if id is None:
            return None
        volume = self.world[id]
        assert isinstance(volume.now, Disk)
        size = self._chance.choice(SIZES)
        if size == volume.now.size:
            return None
        cells = volume.now.cells[: size // CELL].ljust(size // CELL, b"\0")
        return Step("resize", {"id": id, "size": size}, id, self._with(id, replace(volume, now=Disk(cells))))

    def delete(self) -> Step | None:
        id = self._some()
        if id is None or len(self.world) < 3 or self._standing_on(id):
            return None
        shred = self._chance.random() < 0.3
        return Step("delete", {"id": id, "shred": shred}, id, self._with(id, None))


_KINDS: list[Callable[[Story], Step | None]] = [
    Story.create,
    Story.clone,
    *[Story.write] * 3,
    *[Story.put] * 2,
    Story.unlink,
    *[Story.snapshot] * 3,
    *[Story.drop] * 2,
    Story.restore,
    Story.resize,
    Story.delete,
]
