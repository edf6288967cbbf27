"""Images of a Ceph pool: what ``rbd --format json`` tells of them."""

import errno
import secrets

import msgspec

from lamella.host.storage import owner
from lamella.host.storage.driver import Extent
from lamella.host.storage.rbd import fencing
from lamella.host.storage.rbd.bases import Bases
from lamella.host.storage.rbd.cluster import LONG, Cluster, decode
from lamella.model.errors import LamellaError
from lamella.model.ids import is_id
from lamella.model.storage_requests import StorageFinding

_ABSENT = (errno.ENOENT,)


class Parent(msgspec.Struct, kw_only=True):
    image: str = ""
    snapshot: str = ""


class Info(msgspec.Struct, kw_only=True):
    """``rbd info``; ``flags`` says among others ``object map invalid``."""

    size: int
    flags: list[str] = []
    parent: Parent | None = None


class _Used(msgspec.Struct, kw_only=True):
    used_size: int = 0


class _Usage(msgspec.Struct, kw_only=True):
    images: list[_Used] = []


class _Snap(msgspec.Struct, kw_only=True):
    id: int
    name: str


class _Child(msgspec.Struct, kw_only=True):
    image: str


class _Piece(msgspec.Struct, kw_only=True):
    """``rbd diff``; ``exists`` is ``true`` or ``false`` as text in versions up to 16 and as a word of JSON in others."""

    offset: int
    length: int
    exists: bool | str = True


class Images:
    """``owner`` stands for this host in the names of what is being made and removed: ``half.OWNER.ID.…``, ``gone.OWNER.ID.…``."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.owner = owner.passing()

    def half(self, name: str) -> str:
        """What the image *name* is called while it is made."""
        return f"half.{self.owner}.{name}.{secrets.token_hex(4)}"

    def gone(self, name: str) -> str:
        """What the image *name* is called while it is removed."""
        return f"gone.{self.owner}.{name}.{secrets.token_hex(4)}"

    def ours(self, name: str) -> bool:
        """Whether this host was making or removing it."""
        return name.startswith((f"half.{self.owner}.", f"gone.{self.owner}."))

    async def names(self) -> list[str]:
        said = await self.cluster.rbd("ls", self.cluster.image("").rstrip("/"), "--format", "json")
        return decode(said.out, list[str])

    async def info(self, name: str, snapshot: str | None = None) -> Info | None:
        """``None`` when there is no such image or snapshot, or only a name without a header."""
        image = self.cluster.image(name, snapshot)
        said = await self.cluster.rbd("info", image, "--format", "json", fine=_ABSENT)
        return None if said.code else decode(said.out, Info)

    async def used(self, name: str) -> int:
        said = await self.cluster.rbd("du", self.cluster.image(name), "--format", "json", timeout=LONG)
        return sum(image.used_size for image in decode(said.out, _Usage).images)

    async def snapshots(self, name: str) -> list[str]:
        said = await self.cluster.rbd("snap", "ls", self.cluster.image(name), "--format", "json")
        return [snap.name for snap in sorted(decode(said.out, list[_Snap]), key=lambda snap: snap.id)]

    async def children(self, name: str, snapshot: str | None) -> list[str]:
        """Images that stand on one snapshot, or on any."""
        image = self.cluster.image(name, snapshot)
        said = await self.cluster.rbd("children", image, "--format", "json", fine=_ABSENT)
        return [] if said.code else [child.image for child in decode(said.out, list[_Child])]

    async def named(self, half: str, name: str) -> bool:
        """Give a finished image its name; ``False`` when one has that name already."""
        words = ("rename", self.cluster.image(half), self.cluster.image(name))
        if (await self.cluster.rbd(*words, fine=(errno.EEXIST,))).code == 0:
            return True
        if await self.info(name) is not None:
            return False
        # A crash amid a renaming left the name with nothing behind it: to remove it clears that (librbd, RemoveRequest).
        await self.cluster.rbd("rm", "--no-progress", self.cluster.image(name), fine=_ABSENT)
        return (await self.cluster.rbd(*words, fine=(errno.EEXIST,))).code == 0

    async def discard(self, name: str) -> None:
        """Remove one of ours that is of no use; a command of ours that was killed still has it open, as far as Ceph knows."""
        await fencing.fence(self.cluster, name)
        await self.remove(name)

    async def remove(self, name: str) -> None:
        """The image and its snapshots; absent is fine."""
        image = self.cluster.image(name)
        removal = ("rm", "--no-progress", image)
        if (
            await self.cluster.rbd(*removal, fine=(errno.ENOENT, errno.ENOTEMPTY), timeout=LONG)
        ).code == errno.ENOTEMPTY:
            await self.cluster.rbd("snap", "purge", "--no-progress", image, fine=_ABSENT, timeout=LONG)
            await self.cluster.rbd(*removal, fine=_ABSENT, timeout=LONG)

    async def data(self, name: str) -> list[Extent]:
        """Where it or what it stands on holds data."""
        said = await self.cluster.rbd("diff", self.cluster.image(name), "--format", "json", timeout=LONG)
        return extents(said.out)

    async def delta(self, name: str, since: str, until: str | None) -> list[Extent]:
        image = self.cluster.image(name, until)
        said = await self.cluster.rbd("diff", "--from-snap", since, image, "--format", "json", timeout=LONG)
        return extents(said.out)

    async def check(self, bases: Bases, *, repair: bool) -> list[StorageFinding]:
        """Names without a header, object maps that are not to be trusted, and what half-done work left."""
        findings: list[StorageFinding] = []
        for name in await self.names():
            findings += await self._check(name, repair=repair)
        for name in await bases.unused():
            if repair:
                await bases.drop(name)
            findings.append(
                StorageFinding(subject=name, problem="the disk of an image that no volume stands on", mended=repair)
            )
        return findings

    async def _check(self, name: str, *, repair: bool) -> list[StorageFinding]:
        if name.startswith("gone."):
            mended = repair and not await fencing.alive(self.cluster, name)
            if mended:
                await self.remove(name)
            problem = "an image that is being removed, or was when its host failed"
            return [StorageFinding(subject=name, problem=problem, mended=mended)]
        if name.startswith("half."):
            return [
                StorageFinding(
                    subject=name,
                    problem="an image that is being made, or was when its host failed",
                    hint="the host that made it drops it when it opens the pool; if that is gone for good, rbd rm it",
                )
            ]
        if not is_id(name):
            return []
        try:
            info = await self.info(name)
        except LamellaError as error:
            return [StorageFinding(subject=name, problem=error.message, hint=error.hint)]
        if info is None:
            return [
                StorageFinding(
                    subject=name, problem="it has a name and no header: its creation was cut short", hint="delete it"
                )
            ]
        if not info.flags:
            return []
        if repair:
            await self.cluster.rbd("object-map", "rebuild", "--no-progress", self.cluster.image(name), timeout=LONG)
        return [StorageFinding(subject=name, problem=", ".join(info.flags), mended=repair)]


def extents(text: bytes) -> list[Extent]:
    """What ``rbd diff`` says, in order, neighbours joined."""
    found: list[Extent] = []
    for piece in sorted(decode(text, list[_Piece]), key=lambda piece: piece.offset):
        zero = piece.exists in (False, "false")
        last = found[-1] if found else None
        if last is not None and last.zero is zero and last.offset + last.length == piece.offset:
            found[-1] = Extent(offset=last.offset, length=last.length + piece.length, zero=zero)
        else:
            found.append(Extent(offset=piece.offset, length=piece.length, zero=zero))
    return found


def with_growth(found: list[Extent], begins: int, ends: int) -> list[Extent]:
    """*found*, and zeros where nothing is of what a volume gained that grew from *begins* to *ends* bytes: ``rbd diff`` leaves that out."""
    gained: list[Extent] = []
    at = begins
    for extent in found:
        if extent.offset > at:
            gained.append(Extent(offset=at, length=min(extent.offset, ends) - at, zero=True))
        at = max(at, extent.offset + extent.length)
    if at < ends:
        gained.append(Extent(offset=at, length=ends - at, zero=True))
    return sorted([*found, *gained], key=lambda extent: extent.offset)
