"""A pool on btrfs: a directory of one, or one of its own in a file.

Filesystem volumes are subvolumes, bounded by quotas. Block volumes are files; a snapshot of one shares its blocks (FICLONE), and so
does a clone, so that there are no chains, and one that is open is kept as a power cut would leave it. Data has checksums, unless the
pool was made to write in place (``nocow``).

Options: ``image`` (a size: the btrfs is in the file ``<path>.btrfs``, made when there is none), ``data`` (how that is made:
``single``, or ``dup`` to store everything twice and mend flipped bits), ``nocow`` (``yes``: files of block volumes are written in
place: quick, without checksums), ``quota`` (``no``: sizes of filesystem volumes are not enforced).
"""

import asyncio
import contextlib
import fcntl
import os
import re
from pathlib import Path

from lamella.host.storage.btrfs.image import Image
from lamella.host.storage.btrfs.subvolumes import Subvolumes
from lamella.host.storage.directory.pool import FilePool, room_of
from lamella.host.storage.directory.trees import run
from lamella.model.errors import Conflict, Invalid, LamellaError, Unavailable
from lamella.model.quantity import parse_size
from lamella.model.resource import Condition
from lamella.model.storage import Feature, PoolStatus
from lamella.model.storage_requests import StorageFinding

# BTRFS_IOC_FS_INFO: any other filesystem refuses it.
_FS_INFO, _FS_INFO_SIZE = 0x8400941F, 1024
_OPTIONS = {"image", "data", "nocow", "quota"}
_CHUNK = 4 << 20


class BtrfsDriver(FilePool):
    """:class:`~lamella.host.storage.driver.StorageDriver` over btrfs."""

    name = "btrfs"

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        """:raise Invalid: when an option is wrong."""
        given = options or {}
        if unknown := sorted(set(given) - _OPTIONS):
            raise Invalid(f"the btrfs driver has no option {unknown[0]}", hint=f"it has {', '.join(sorted(_OPTIONS))}")
        if given.get("data", "single") not in ("single", "dup"):
            raise Invalid(f"data cannot be {given['data']!r}", hint="use single or dup", field="options")
        self._nocow = _yes(given, "nocow", default=False)
        self._counts = _yes(given, "quota", default=True)
        self._subvolumes = Subvolumes(nocow=self._nocow)
        self._image: Image | None = None
        if "image" in given:
            self._image = Image(path, parse_size(given["image"], field="options"), data=given.get("data", ""))
        self.features = frozenset(
            {
                Feature.BLOCK,
                Feature.FILESYSTEM,
                Feature.THIN,
                Feature.SNAPSHOT,
                Feature.LIVE_SNAPSHOT,
                Feature.CLONE,
                Feature.SHRINK,
                Feature.DELTA,
                *([Feature.QUOTA] if self._counts else []),
                *([] if self._nocow else [Feature.CHECKSUM]),
                *([Feature.REDUNDANT] if given.get("data") == "dup" and not self._nocow else []),
            }
        )
        super().__init__(path, given, trees=self._subvolumes)
        self._uncounted = ""

    async def open(self) -> PoolStatus:
        """:raise Unavailable: when *path* is on no btrfs, or cannot be mounted."""
        if self._image is not None:
            await self._image.mount()
        await asyncio.to_thread(self._probe)
        self._uncounted = await self._subvolumes.count(self.path) if self._counts else ""
        if self._uncounted:
            self.features -= {Feature.QUOTA}
        if self._subvolumes.bounded:
            await self._subvolumes.forget_stale(self.path)
        status = await super().open()
        if not self.blocks.shares:
            raise Unavailable(
                f"files of {self.path} cannot share blocks", hint="free some room in it, then open the pool again"
            )
        return status

    def _probe(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"pool directory {self.path} cannot be used: {error.strerror}") from error
        try:
            fcntl.ioctl(descriptor, _FS_INFO, bytes(_FS_INFO_SIZE))
        except OSError as error:
            raise Unavailable(
                f"{self.path} is on no btrfs",
                hint="give a directory of one, or the option image=20GiB to have one made",
            ) from error
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        """What is mounted stays when something in it is open."""
        await super().close()
        if self._image is not None:
            await self._image.unmount()

    async def status(self) -> PoolStatus:
        """What is free is no more than the filesystem around the image has, too.

        :raise Unavailable: when it does not answer.
        """
        capacity, free = await asyncio.to_thread(room_of, self.path)
        if self._image is not None:
            _, outside = await asyncio.to_thread(room_of, self._image.file.parent)
            free = min(free, outside)
        conditions: list[Condition] = []
        if not self._subvolumes.bounded:
            message = self._uncounted or "the pool was made with quota=no"
            conditions.append(
                Condition(
                    type="SizeEnforced",
                    status=False,
                    reason="NoQuota",
                    message=f"a filesystem volume may fill the pool: {message}",
                )
            )
        return PoolStatus(capacity=capacity, free=free, features=sorted(self.features), conditions=conditions)

    async def delete(self, id: str, *, shred: bool = False) -> None:
        """*shred* writes zeros over a volume whose files are written in place; over others it would only write elsewhere.

        :raise Conflict: as in the Protocol.
        """
        counted = self._subvolumes.bounded and await asyncio.to_thread((self.ground.place(id) / "data").exists)
        await super().delete(id, shred=shred)
        if counted:
            await self._subvolumes.forget_stale(self.path)

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        """All data and tables of the whole filesystem, against their checksums (btrfs-scrub(8)); what is stored twice is mended with
        *repair*. Without checksums (``nocow``): layers that are written no more, as a directory has it.

        :raise Conflict: when a scrub runs already. :raise Unavailable: when it cannot be read at all.
        """
        try:
            how = [] if repair else ["-r"]
            said = await run("btrfs", "scrub", "start", "-B", "-R", *how, str(self.path), good=(0, 3))
        except Unavailable as error:
            if "already running" in error.message:
                raise Conflict(f"a scrub of {self.path} runs already", hint="wait until it ends") from error
            raise
        told = {name: int(number) for name, number in re.findall(r"^\s*(\w+): (\d+)$", said, re.MULTILINE)}
        read = told.get("data_bytes_scrubbed", 0) + told.get("tree_bytes_scrubbed", 0)
        found: list[StorageFinding] = []
        if mended := told.get("corrected_errors", 0):
            found.append(StorageFinding(subject=str(self.path), problem=f"{mended} blocks were wrong", mended=True))
        if told.get("uncorrectable_errors", 0) or (not repair and told.get("csum_errors", 0)):
            found += await self._unreadable() or [
                StorageFinding(
                    subject=str(self.path),
                    problem=f"{told.get('uncorrectable_errors', 0)} blocks are wrong and there is no second copy",
                    hint="the kernel's log says which files they belong to",
                )
            ]
        if self._nocow:
            _, more = await super().scrub(repair=repair)
            found += more
        return read, found

    async def _unreadable(self) -> list[StorageFinding]:
        """Volumes with blocks that cannot be read."""
        found: list[StorageFinding] = []
        for id in sorted(await self.inventory()):
            place = self.ground.place(id)
            wrong = await asyncio.to_thread(_broken, place)
            found += [
                StorageFinding(
                    subject=id,
                    problem=f"{path.relative_to(place)} has blocks that are not what was written there",
                    hint="restore it from a backup, or from a snapshot that does not share them",
                )
                for path in wrong
            ]
        return found

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        found = await super().check(repair=repair)
        try:
            said = await run("btrfs", "device", "stats", str(self.path))
        except LamellaError as error:
            return [*found, StorageFinding(subject=str(self.path), problem=error.message)]
        if wrong := [line.strip() for line in said.splitlines() if not line.endswith(" 0")]:
            problem = f"the device has had errors: {'; '.join(wrong)}"
            hint = "look at the disk, scrub the pool, then reset them with btrfs device stats --reset"
            found.append(StorageFinding(subject=str(self.path), problem=problem, hint=hint))
        return found


def _yes(options: dict[str, str], name: str, *, default: bool) -> bool:
    said = options.get(name, "yes" if default else "no")
    if said not in ("yes", "no"):
        raise Invalid(f"{name} cannot be {said!r}", hint="use yes or no", field="options")
    return said == "yes"


def _broken(place: Path) -> list[Path]:
    """Regular files that cannot be read to their end, from the disk and not from memory."""
    found: list[Path] = []
    for directory, _, names in os.walk(place):
        for name in names:
            path = Path(directory) / name
            with contextlib.suppress(FileNotFoundError):
                if path.is_symlink() or not path.is_file():
                    continue
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    while os.read(descriptor, _CHUNK):
                        pass
                except OSError:
                    found.append(path)
                finally:
                    os.close(descriptor)
    return found
