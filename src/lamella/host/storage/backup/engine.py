"""What a backup engine has to do: store trees of files incrementally, deduplicated and encrypted, and give them back."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from lamella.model.backup_requests import Stored

# Told of bytes done, of how many.
Told = Callable[[int, int], None]


class Summary(msgspec.Struct, kw_only=True, frozen=True):
    """``read`` is how much was read of the content, ``added`` by how much the repository grew, before it compresses."""

    engine_id: str
    read: int = 0
    added: int = 0


class Damage(msgspec.Struct, kw_only=True, frozen=True):
    """What a check of a repository found: sentences, and the ids of packs that are broken."""

    problems: list[str] = []
    packs: list[str] = []


class Engine(Protocol):
    """One repository. Verbs raise :class:`Unavailable` when it cannot be reached, :class:`Forbidden` when the key is not its,
    :class:`NoRoom` when it is full, :class:`Corrupt` when what is asked for is damaged. One that is cancelled leaves nothing half done
    that counts."""

    async def create(self) -> str:
        """Make it; its id. :raise Conflict: when there is one."""
        ...

    async def identify(self) -> str:
        """Its id. :raise NotFound: when there is none."""
        ...

    async def stored(self) -> list[Stored]:
        """What of ours is in it, oldest first."""
        ...

    async def size(self, engine_id: str) -> int:
        """Bytes that its files have. :raise NotFound: when it is not in the repository."""
        ...

    async def store(self, directory: Path, note: str, *, parent: str = "", told: Told | None = None) -> Summary:
        """All files below *directory*. A file that has the size, the inode and the times that it had in *parent* (an engine's id) is
        not opened."""
        ...

    async def store_bytes(self, name: str, content: bytes, note: str) -> Summary: ...

    async def restore(
        self, engine_id: str, target: Path, *, include: list[str] | None = None, told: Told | None = None
    ) -> None:
        """Its files, or those of *include* (paths from its root), below *target*."""
        ...

    async def read(self, engine_id: str, name: str) -> bytes:
        """One small file of it."""
        ...

    async def check(self, share: int, told: Told | None = None) -> Damage:
        """Look at everything, and read *share* percent of the content."""
        ...

    async def hit(self, packs: list[str], engine_ids: list[str]) -> list[str]:
        """Which of *engine_ids* need one of *packs*."""
        ...

    async def forget(self, engine_ids: list[str]) -> None:
        """They are no more; gone already is fine."""
        ...

    async def prune(self, told: Told | None = None) -> None: ...

    def mounting(self, point: Path) -> tuple[list[str], dict[str, str], bytes]:
        """The command that shows all of it below *point* (``ids/<first eight of an id>``), its environment, and what its descriptor 3 has
        to give."""
        ...
