"""Shutting a client of a Ceph image out: the cluster is told never to take anything from its address again.

A client is an address with a nonce that no other has (``127.0.0.1:0/2451868034``). Whoever has an image open watches its header; whoever
writes holds its exclusive lock, which by itself is a courtesy between clients: the next writer asks for it and gets it. Ceph
forgets a client that died after 30 seconds (``osd_client_watch_timeout``); one that is blocklisted at once, and OSDs refuse what it had
on its way. Source: https://docs.ceph.com/en/latest/rbd/rbd-exclusive-locks/.
"""

import asyncio
import errno

import msgspec

from lamella.host.storage.rbd.cluster import Cluster, decode

# For how long the cluster remembers it. A process that slept for longer than this could still write.
_SECONDS = 365 * 24 * 3600


class _Watcher(msgspec.Struct, kw_only=True):
    address: str


class _Status(msgspec.Struct, kw_only=True):
    watchers: list[_Watcher] = []


class Lock(msgspec.Struct, kw_only=True):
    """``rbd lock ls``; ``locker`` is ``client.N``."""

    id: str
    locker: str
    address: str


async def watchers(cluster: Cluster, id: str) -> list[str]:
    """Addresses of the clients that have the image open."""
    said = await cluster.rbd("status", cluster.image(id), "--format", "json", fine=(errno.ENOENT,))
    return [] if said.code else [watcher.address for watcher in decode(said.out, _Status).watchers]


async def locks(cluster: Cluster, id: str) -> list[Lock]:
    said = await cluster.rbd("lock", "ls", cluster.image(id), "--format", "json", fine=(errno.ENOENT,))
    return [] if said.code else decode(said.out, list[Lock])


async def fence(cluster: Cluster, id: str) -> None:
    """Blocklist every client that has the image open or locked, then take its lock away.

    :raise Unavailable: when the cluster does not do it.
    """
    open_by, held = await asyncio.gather(watchers(cluster, id), locks(cluster, id))
    for address in sorted({*open_by, *(lock.address for lock in held)}):
        await cluster.ceph("osd", "blocklist", "add", address, str(_SECONDS))
    for lock in held:
        # Only now: until the blocklist is in force its holder may still write.
        await cluster.rbd("lock", "rm", cluster.image(id), lock.id, lock.locker, fine=(errno.ENOENT,))
