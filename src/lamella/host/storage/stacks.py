"""From a volume, as control knows it, to the stack of nodes that the storage process opens: its driver's node, its key, its limits."""

from collections.abc import Awaitable, Callable

from lamella.host.storage.blocks import OVERHEAD, Stack
from lamella.host.storage.driver import Node
from lamella.host.storage.keys import KeyRing
from lamella.host.storage.pools import Pools
from lamella.host.storage.records import MadeVolume, Records
from lamella.model.storage import IoLimits, Volume


class Stacks:
    """Looks at pools, keys and records, and changes nothing."""

    def __init__(self, pools: Pools, keys: KeyRing, records: Records) -> None:
        self._pools = pools
        self.keys = keys
        self._records = records
        # What is opened instead of a volume's own node: both halves of a synchronous pair.
        self.over: Callable[[Volume, Node], Awaitable[Node]] | None = None

    async def of(
        self, volume: Volume, snapshot: str | None = None, *, passphrase: str = "", read_only: bool = False
    ) -> Stack:
        """How to open it, or one of its snapshots for reading.

        :raise NotFound: when it is not in its pool. :raise Unavailable: when its pool or its key is not at hand.
        """
        made = self.made(volume.id)
        pool = self._pools.get(volume.spec.pool)
        if snapshot is not None and snapshot in made.copies:
            node = await pool.node(made.copies[snapshot])
        else:
            node = await pool.node(volume.id, snapshot)
        if snapshot is None and not read_only and self.over is not None:
            node = await self.over(volume, node)
        return Stack(
            id=volume.id if snapshot is None else opened_as(volume.id, snapshot),
            node=node,
            key=await self.key(volume, passphrase),
            limits=volume.spec.limits if snapshot is None else IoLimits(),
            group=group_of(volume) if snapshot is None else "",
            read_only=read_only or snapshot is not None,
        )

    async def key(self, volume: Volume, passphrase: str = "") -> bytes:
        """Empty when it is not encrypted. Raises what :meth:`KeyRing.unwrap` does."""
        wrapped = self.wrapped(volume)
        return await self.keys.unwrap(volume.id, wrapped, passphrase) if wrapped else b""

    def wrapped(self, volume: Volume) -> str:
        """Its wrapped key: what this host wrote down is newer than what control may have heard of."""
        return self.made(volume.id).key or volume.status.key

    def made(self, id: str) -> MadeVolume:
        """What this host wrote down of it."""
        return self._records.made.read(id, MadeVolume) or MadeVolume()

    def encrypted(self, volume: Volume) -> bool:
        return bool(self.wrapped(volume)) or volume.spec.encryption is not None

    def overhead(self, volume: Volume) -> int:
        """By how many bytes it is larger in its pool than for whoever uses it."""
        return OVERHEAD if self.encrypted(volume) else 0


def opened_as(volume_id: str, snapshot: str) -> str:
    """What a snapshot is called in the storage process while it is read."""
    return f"{volume_id}@{snapshot}"


def group_of(volume: Volume) -> str:
    """The limits that volumes of one project share; empty when it has its own."""
    return f"{volume.project}/{volume.spec.limits.group}" if volume.spec.limits.group else ""
