"""What a Ceph pool holds and how it is kept, and its deep scrub: every copy of every object is read and compared.

A scrub is the cluster's own work; we ask for it, wait for its stamps, and read what it found (``rados list-inconsistent-obj``).
Source: https://docs.ceph.com/en/latest/rados/operations/pg-repair/.
"""

import asyncio
import time

import msgspec

from lamella.host.storage.rbd.cluster import LONG, Cluster, Health, decode
from lamella.model.errors import Unavailable
from lamella.model.resource import Condition
from lamella.model.storage import Feature, PoolStatus
from lamella.model.storage_requests import StorageFinding

_POLL = 0.25


class _PoolStats(msgspec.Struct, kw_only=True):
    stored: int = 0
    max_avail: int = 0


class _Pool(msgspec.Struct, kw_only=True):
    name: str
    stats: _PoolStats


class _Total(msgspec.Struct, kw_only=True):
    total_avail_bytes: int = 0


class _Room(msgspec.Struct, kw_only=True):
    stats: _Total = msgspec.field(default_factory=_Total)
    pools: list[_Pool] = []


class _Detail(msgspec.Struct, kw_only=True):
    pool_name: str
    size: int = 1


class _Osd(msgspec.Struct, kw_only=True):
    osd_objectstore: str = ""


class _Sum(msgspec.Struct, kw_only=True):
    num_bytes: int = 0


class _Group(msgspec.Struct, kw_only=True):
    pgid: str
    state: str = ""
    last_deep_scrub_stamp: str = ""
    acting: list[int] = []
    stat_sum: _Sum = msgspec.field(default_factory=_Sum)


class _Groups(msgspec.Struct, kw_only=True):
    pg_stats: list[_Group] = []


class _Object(msgspec.Struct, kw_only=True):
    name: str = ""


class _Inconsistent(msgspec.Struct, kw_only=True):
    object: _Object
    errors: list[str] = []
    union_shard_errors: list[str] = []


class _Inconsistents(msgspec.Struct, kw_only=True):
    inconsistents: list[_Inconsistent] = []


class _Prefix(msgspec.Struct, kw_only=True):
    block_name_prefix: str = ""


async def pool_status(cluster: Cluster) -> tuple[frozenset[Feature], PoolStatus]:
    """``REDUNDANT`` and ``CHECKSUM`` as far as the pool has them, and its room in bytes of data.

    :raise Unavailable: when the cluster does not answer or has no such pool.
    """
    pools, room, health, osds = await cluster.ceph_all("osd pool ls detail", "df", "health", "osd metadata")
    pool = next((pool for pool in decode(pools, list[_Detail]) if pool.pool_name == cluster.pool), None)
    if pool is None:
        raise Unavailable(f"Ceph has no pool {cluster.pool}", hint=f"ceph osd pool create {cluster.pool}")
    found: set[Feature] = set()
    if pool.size > 1:
        found.add(Feature.REDUNDANT)
    stores = {osd.osd_objectstore for osd in decode(osds, list[_Osd]) if osd.osd_objectstore}
    if stores == {"bluestore"}:
        found.add(Feature.CHECKSUM)
    said = decode(room, _Room)
    # A pool is counted only some seconds after it was made.
    new = _PoolStats(max_avail=said.stats.total_avail_bytes // max(1, pool.size))
    stats = next((one.stats for one in said.pools if one.name == cluster.pool), new)
    return frozenset(found), PoolStatus(
        capacity=stats.stored + stats.max_avail,
        free=stats.max_avail,
        conditions=_conditions(decode(health, Health)),
    )


def _conditions(health: Health) -> list[Condition]:
    if health.status == "HEALTH_OK":
        return []
    said = "; ".join(check.summary.message for check in health.checks.values())
    return [
        Condition(
            type="Healthy",
            status=False,
            reason="".join(word.capitalize() for word in health.status.split("_")) or "Unknown",
            message=f"Ceph says {health.status}: {said}",
            hint="ceph health detail tells more",
        )
    ]


async def scrub(cluster: Cluster, *, repair: bool) -> tuple[int, list[StorageFinding]]:
    """Bytes read, all copies counted, and what was wrong; with *repair* the cluster writes wrong copies anew from right ones.

    :raise Unavailable: when the cluster does not answer, or the scrub does not end in a day.
    """
    await _run(cluster, ["osd", "pool", "deep-scrub", cluster.pool], None)
    wrong = await _wrong(cluster)
    if wrong and repair:
        for group in wrong:
            await _run(cluster, ["pg", "repair", group], group)
    after = await _wrong(cluster) if wrong and repair else wrong
    names = await _images(cluster) if wrong else {}
    still = {(group, item.object.name) for group, items in after.items() for item in items}
    findings = [
        _finding(names, group, item, mended=(group, item.object.name) not in still)
        for group, items in wrong.items()
        for item in items
    ]
    return sum(group.stat_sum.num_bytes * len(group.acting) for group in await _groups(cluster)), findings


def _finding(names: dict[str, str], group: str, item: _Inconsistent, *, mended: bool) -> StorageFinding:
    prefix = item.object.name.rpartition(".")[0]
    return StorageFinding(
        subject=names.get(prefix, item.object.name),
        problem=f"object {item.object.name} of placement group {group}: {', '.join(item.union_shard_errors + item.errors)}",
        mended=mended,
        hint="" if mended else "without a right copy it is lost: restore the volume from a backup",
    )


async def _run(cluster: Cluster, words: list[str], group: str | None) -> None:
    """Ask for a scrub or a repair of one group or of all, and wait until it has been done."""

    def stamps(groups: list[_Group]) -> dict[str, str]:
        return {one.pgid: one.last_deep_scrub_stamp for one in groups if group in (None, one.pgid)}

    before = stamps(await _groups(cluster))
    await cluster.ceph(*words)
    deadline = time.monotonic() + LONG
    asked = time.monotonic()
    while True:
        await asyncio.sleep(_POLL)
        groups = await _groups(cluster)
        now = stamps(groups)
        busy = any("repair" in one.state or "scrubbing" in one.state for one in groups if one.pgid in now)
        if not busy and all(now.get(name) != stamp for name, stamp in before.items()):
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the scrub of Ceph pool {cluster.pool} does not end", hint="ceph pg dump tells what scrubs"
            )
        if time.monotonic() > asked + 60:
            # An OSD that was asked while it was busy may forget it.
            await cluster.ceph(*words)
            asked = time.monotonic()


async def _groups(cluster: Cluster) -> list[_Group]:
    return decode(await cluster.ceph("pg", "ls-by-pool", cluster.pool), _Groups).pg_stats


async def _wrong(cluster: Cluster) -> dict[str, list[_Inconsistent]]:
    found: dict[str, list[_Inconsistent]] = {}
    for group in decode(await cluster.rados("list-inconsistent-pg", cluster.pool), list[str]):
        found[group] = decode(await cluster.rados("list-inconsistent-obj", group), _Inconsistents).inconsistents
    return {group: items for group, items in found.items() if items}


async def _images(cluster: Cluster) -> dict[str, str]:
    """Names of images by what their objects' names begin with."""
    where = cluster.image("").rstrip("/")
    found: dict[str, str] = {}
    for name in decode((await cluster.rbd("ls", where, "--format", "json")).out, list[str]):
        said = await cluster.rbd("info", cluster.image(name), "--format", "json", fine=(2,))
        if said.code == 0:
            found[decode(said.out, _Prefix).block_name_prefix] = name
    return found
