"""The way in to a volume, for each attachment. Pure.

| way | what the instance gets |
| --- | --- |
| ``tree`` | the directory that a filesystem volume is |
| ``mount`` | a mount of a block volume's filesystem on this host |
| ``served`` | an NBD socket, of a storage process that serves this machine alone: requests may be under way together |
| ``file`` | a file of the storage process (FUSE): one request after the other |

vhost-user-blk is none of them: QEMU 7.2 loses requests over it when the storage process is killed (docs/storage/levels.md).
"""

import msgspec

from lamella.model.errors import Unsupported
from lamella.model.instance import TAKES_SOCKETS, Isolation
from lamella.model.storage import Volume, VolumeForm

TREE, MOUNT, FILE, SERVED = "tree", "mount", "file", "served"

# Levels whose processes are the host kernel's own.
_DIRECTORIES = frozenset({Isolation.CONTAINER, Isolation.WASM})


class Chosen(msgspec.Struct, kw_only=True, frozen=True):
    """``why`` is said where another way would have been the better one."""

    way: str
    why: str = ""

    @property
    def words(self) -> str:
        """For a contract; empty where there is nothing to tell."""
        if self.way == SERVED:
            return "served over NBD by a storage process of this machine's own"
        if self.way == FILE:
            return "a file of the storage process" + (f", since {self.why}" if self.why else "")
        return ""


def choose(
    volume: Volume, level: Isolation, target: str, *, read_only: bool, running: bool = False, shown: bool = False
) -> Chosen:
    """How *volume* is given to an instance of *level*. *running*: it runs already; *shown*: it has another volume that is served to it, so
    that its room shows the sockets.

    :raise Unsupported: when the level cannot take it.
    """
    if volume.spec.form is VolumeForm.FILESYSTEM:
        if level not in _DIRECTORIES:
            raise Unsupported(
                f"volume {volume.name} is a directory, and a {level} takes disks",
                hint="create one of form block, which every level takes",
            )
        return Chosen(way=TREE)
    if level in _DIRECTORIES:
        if not target:
            raise Unsupported(f"a {level} takes no bare disk", hint=f"name a directory for it: {volume.name}:/data")
        return Chosen(way=MOUNT)
    for right, why in (
        (level not in TAKES_SOCKETS, f"a {level} takes no other disks"),
        (read_only, "others may read it as well"),
        (bool(volume.spec.limits.group), "limits that are shared are those of one process"),
        (volume.spec.tier is not None, "its use is counted there, for its tiers"),
        (running and not shown, "it came while the machine ran, whose room shows no sockets"),
    ):
        if right:
            return Chosen(way=FILE, why=why)
    return Chosen(way=SERVED)
