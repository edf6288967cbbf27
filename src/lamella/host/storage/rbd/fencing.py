"""Shutting a client of a Ceph image out: the cluster is told never to take anything from its address again.

A client is an address with a nonce that no other has (``127.0.0.1:0/2451868034``). Whoever has an image open watches its header; whoever
writes holds its exclusive lock, which by itself is a courtesy between clients: the next writer asks for it and gets it. Ceph
forgets a client that died after 30 seconds (``osd_client_watch_timeout``); one that is blocklisted at once, and OSDs refuse what it had
on its way. Source: https://docs.ceph.com/en/latest/rbd/rbd-exclusive-locks/.

Nothing but that time tells a client that died from one that lives and says nothing: who is still there when it has passed, lives.
"""

import asyncio
import errno

import msgspec

from lamella.host.storage.rbd.cluster import Cluster, decode
from lamella.model.errors import Unavailable

# For how long the cluster remembers it. A process that slept for longer than this could still write.
_SECONDS = 365 * 24 * 3600
# After how many seconds Ceph forgets a client that died, unless the cluster says something else.
_FORGETS = 30.0
# What an OSD may take beyond that, and how often we look.
_SLACK = 5.0
_PAUSE = 0.5


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


async def alive(cluster: Cluster, id: str) -> list[str]:
    """Addresses of the clients that have the image open and live; this waits until Ceph would have forgotten one that died."""
    loop = asyncio.get_running_loop()
    began, patience = loop.time(), 0.0
    while found := await watchers(cluster, id):
        patience = patience or await _forgets(cluster) + _SLACK
        if loop.time() - began > patience:
            return found
        await asyncio.sleep(_PAUSE)
    return []


async def _forgets(cluster: Cluster) -> float:
    try:
        return decode(await cluster.ceph("config", "get", "osd", "osd_client_watch_timeout"), float)
    except Unavailable:
        return _FORGETS


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
