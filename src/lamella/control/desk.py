"""The desk at which hosts ask what is theirs to do, and tell what they saw: :class:`ControlDesk` over the store."""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from lamella.control.bulletin import Bulletin
from lamella.control.events import record
from lamella.control.network import balancing, floating, spanning
from lamella.control.network.balancers import hear as hear_balancer
from lamella.control.network.mirrors import forget_mirrors
from lamella.control.pinning import release_pins
from lamella.control.storage.attaching import let_go
from lamella.control.storage.hearing import hear, measured
from lamella.control.storage.holding import is_left, left_behind, outlive
from lamella.control.storage.lookup import held
from lamella.control.storage.parting import part_with_snapshots
from lamella.control.templates.giving_way import give_back
from lamella.model.assignment import Assignment, Assignments, InstanceReport
from lamella.model.balancer import BalancerReport
from lamella.model.errors import Conflict, Forbidden, NotFound
from lamella.model.host import Host, HostSpec, HostStatus
from lamella.model.instance import Decision, Instance, InstanceStatus, Phase
from lamella.model.kinds import AnyResource
from lamella.model.network import Network, Port
from lamella.model.resource import new_resource, now
from lamella.model.storage import Pool, Snapshot, StorageEvent, StoragePhase, Volume
from lamella.store.store import Change, Store, Transaction

# What the host sees; everything else in an instance's status is control's and is not overwritten by a report.
OBSERVED_FIELDS = (
    "phase",
    "conditions",
    "observed_generation",
    "driver",
    "epoch",
    "pid",
    "exit_code",
    "started_at",
    "finished_at",
    "restarts",
    "published",
    "launched_cpu",
    "launched_memory",
    "accelerator",
    "accelerator_reason",
    "mechanisms",
    "board",
    "devices",
)
RELEVANT = frozenset({"instance", "network", "pool", "firewall", "router", "address", "balancer", "host", "port"})


class Desk:
    """Answers every host for itself alone. ``host`` arguments are ids that the caller has proved to be (the wire sees to that)."""

    def __init__(self, store: Store, bulletin: Bulletin) -> None:
        self._store = store
        self._bulletin = bulletin

    async def register(self, name: str, status: HostStatus, address: str) -> str:
        status.phase = "ready"
        status.seen_at = now()

        def write(tx: Transaction) -> Host:
            for pool_name, seen in status.pools.items():
                pool = tx.get("pool", "default", pool_name)
                if pool is not None:
                    pool.status = measured(pool, seen)
                    tx.update(pool)
            known = tx.get("host", "default", name)
            if known is None:
                known = tx.insert(new_resource("host", name, HostSpec(address=address), status))
            else:
                known.spec.address, known.status = address, status
                known = tx.update(known)
            spanning.settle(tx)
            return known

        return (await self._store.write(write)).id

    async def assignments(self, host: str, since: int, wait: float) -> Assignments:
        changed = asyncio.Event()

        def look(change: Change) -> None:
            if change.kind in RELEVANT or _users(change):
                changed.set()

        stop = self._bulletin.listen(look)
        try:
            answer = await self._collect(host, since)
            told = answer.complete or answer.instances or answer.gone or answer.networks
            told = told or answer.balancers is not None or answer.neighbours is not None or answer.policy is not None
            if told or wait <= 0:
                return answer
            try:
                async with asyncio.timeout(wait):
                    await changed.wait()
            except TimeoutError:
                return answer
            return await self._collect(host, since)
        finally:
            stop()

    async def _collect(self, host: str, since: int) -> Assignments:
        if since == 0:
            return await self._everything(host)
        try:
            changes = await self._store.changes(since)
        except Conflict:
            return await self._everything(host)
        if not changes:
            return Assignments(revision=since, complete=False)
        revision = changes[-1].revision
        touched = {c.id for c in changes if c.kind == "instance" and c.resource.status.host == host and _is_news(c)}
        # A volume with another size or key is news for every instance that names it; so is a port with other firewalls for its own.
        users = {id for c in changes for id in _users(c)} - touched
        wider = any(c.kind in ("network", "pool", "firewall", "router", "address") for c in changes)
        # Whoever begins to run, ends, or gets another label may come to be behind a balancer, or be there no more.
        rebalanced = any(c.kind == "balancer" for c in changes)
        balanced = rebalanced or any(c.kind == "instance" for c in changes)
        # Whoever comes, goes or gets other firewalls on another host is another neighbour.
        rehosted = any(c.kind == "host" for c in changes)
        ours = any(c.id == host for c in changes)
        moved = rehosted or any(c.kind == "port" for c in changes)
        if not touched and not users and not wider and not balanced and not moved:
            return Assignments(revision=revision, complete=False)

        def look(tx: Transaction) -> Assignments:
            answer = Assignments(revision=revision, complete=False)
            for id in touched:
                instance = tx.by_id(id)
                if instance is None:
                    answer.gone.append(id)
                else:
                    answer.instances.append(_assignment(tx, instance))
            for id in users:
                instance = tx.by_id(id)
                if instance is not None and instance.status.host == host:
                    answer.instances.append(_assignment(tx, instance))
            if wider:
                answer.networks, answer.pools, answer.firewalls = _networks(tx), _pools(tx), tx.list("firewall")
                answer.routers, answer.outside = floating.tasks(tx), floating.outside(tx)
            if rebalanced or (balanced and tx.list("balancer")):
                answer.balancers = balancing.tasks(tx, host)
            if ours:
                answer.policy = _policy(tx, host)
            if moved and (rehosted or len(spanning.underlays(tx)) > 1):
                answer.neighbours = spanning.neighbours(tx, host)
            return answer

        return await self._store.read(look)

    async def _everything(self, host: str) -> Assignments:
        # Read before the snapshot: a change between the two is told again, never missed.
        revision = await self._store.revision()

        def look(tx: Transaction) -> Assignments:
            mine = [item for item in tx.list("instance") if item.status.host == host]
            return Assignments(
                revision=revision,
                complete=True,
                instances=[_assignment(tx, item) for item in mine],
                networks=_networks(tx),
                firewalls=tx.list("firewall"),
                routers=floating.tasks(tx),
                outside=floating.outside(tx),
                balancers=balancing.tasks(tx, host),
                neighbours=spanning.neighbours(tx, host),
                pools=_pools(tx),
                policy=_policy(tx, host),
                images=sorted(
                    {digest for item in mine for digest in (item.status.image_digest, *item.status.cdroms.values())}
                ),
            )

        return await self._store.read(look)

    async def report(self, host: str, reports: list[InstanceReport]) -> None:
        def write(tx: Transaction) -> None:
            for item in reports:
                instance = tx.by_id(item.id)
                if instance is None:
                    continue
                if instance.status.host != host:
                    raise Forbidden(f"instance {item.id} is not on this host")
                _take(tx, instance, item)

        await self._store.write(write)

    async def report_balancers(self, host: str, reports: list[BalancerReport]) -> None:
        def write(tx: Transaction) -> None:
            for report in reports:
                hear_balancer(tx, host, report)

        await self._store.write(write)

    async def tell(self, host: str, events: list[StorageEvent]) -> None:
        def write(tx: Transaction) -> None:
            for event in events:
                hear(tx, host, event)

        await self._store.write(write)


def _users(change: Change) -> list[str]:
    """Ids of the instances that the volume or port that has changed belongs to."""
    if change.action == "deleted":
        return []
    if change.kind == "port":
        return [change.resource.spec.owner]
    return change.resource.status.attached if change.kind == "volume" else []


def _is_news(change: Change) -> bool:
    """Whether a host has yet to hear of it: what its own report wrote, it knows."""
    instance = change.resource
    seen = instance.status.observed_generation >= instance.generation
    return change.action == "deleted" or instance.deleted_at is not None or not seen


def _networks(tx: Transaction) -> list[Network]:
    """Those that hosts make."""
    networks: list[Network] = tx.list("network")
    return [network for network in networks if not network.spec.external]


def _policy(tx: Transaction, host: str) -> HostSpec | None:
    """What the administrator wants of the host; ``None`` when it is not there any more."""
    known: Host | None = tx.by_id(host)
    return None if known is None else known.spec


def _pools(tx: Transaction) -> list[Pool]:
    """Those that hosts are to have open. One that is being made is asked for by itself."""
    pools: list[Pool] = tx.list("pool")
    return [pool for pool in pools if pool.status.phase is StoragePhase.READY]


def _assignment(tx: Transaction, instance: Instance) -> Assignment:
    status = instance.status
    volume: Volume | None = tx.by_id(status.volume) if status.volume else None
    if volume is None and status.volume:
        raise NotFound(f"instance {instance.name} has lost its volume")
    port: Port | None = tx.by_id(status.port) if status.port else None
    disks: dict[str, Volume] = {name: _need(tx, instance, id) for name, id in status.disks.items()}
    volumes: dict[str, Volume] = {name: _need(tx, instance, id) for name, id in status.volumes.items()}
    ports: dict[str, Port] = {name: _need(tx, instance, id) for name, id in status.ports.items()}
    ids = {item.spec.network for item in (port, *ports.values()) if item is not None}
    networks: dict[str, Network] = {id: _need(tx, instance, id) for id in ids}
    retired: list[AnyResource] = [part for id in status.retired if (part := tx.by_id(id)) is not None]
    parts = [instance, volume, port, *disks.values(), *volumes.values(), *ports.values(), *networks.values()]
    return Assignment(
        revision=max(part.revision for part in parts if part is not None),
        instance=instance,
        volume=volume,
        source=_source(tx, volume),
        port=port,
        network=networks[port.spec.network] if port is not None else None,
        disks=disks,
        ports=ports,
        networks=networks,
        retired_volumes=[part for part in retired if part.kind == "volume"],
        retired_ports=[part for part in retired if part.kind == "port"],
        volumes=volumes,
    )


def _source(tx: Transaction, volume: Volume | None) -> str:
    """The id of the volume of whose snapshot *volume* begins as a copy; empty when it begins as none, or that is gone."""
    snapshot: Snapshot | None = tx.by_id(volume.spec.source) if volume is not None and volume.spec.source else None
    return next(iter(held(snapshot)), "") if snapshot is not None else ""


def _need(tx: Transaction, instance: Instance, id: str) -> Any:
    found = tx.by_id(id)
    if found is None:
        raise NotFound(f"instance {instance.name} has lost a part of itself, {id}")
    return found


def _take(tx: Transaction, instance: Instance, report: InstanceReport) -> None:
    before = instance.status
    instance.status = merged(before, report.status)
    for type, message in report.events:
        record(tx, instance, type, message)
    if report.removed and instance.deleted_at is not None:
        tx.update(instance)
        record(tx, instance, "instance.removed", f"instance {instance.name} is removed")
        for part in (*_owned(instance.status), *instance.status.volumes.values()):
            _part_with(tx, instance, part)
        tx.delete(instance.id)
        return
    for id in report.released:
        if id in instance.status.retired:
            instance.status.retired.remove(id)
            if id not in instance.status.volumes.values():
                _part_with(tx, instance, id)
    release_pins(tx, instance)
    over = ended_for_good(instance) or instance.status.phase is Phase.FAILED
    if over and instance.spec.remove_on_exit and instance.deleted_at is None:
        instance.deleted_at = now()
        outlive(tx, instance)
    tx.update(instance)
    for type, message in report.events:
        if type == "memory.pressure":
            give_back(tx, instance, message)


def _part_with(tx: Transaction, instance: Instance, id: str) -> None:
    """The host has let go of *id* for *instance*: what is its own goes, a volume with a life of its own is free again."""
    part = tx.by_id(id)
    if part is None:
        return
    if part.kind == "volume" and part.spec.owner != instance.id:
        let_go(tx, instance, part)
        if is_left(part):
            left_behind(tx, part)
    else:
        if part.kind == "volume":
            part_with_snapshots(tx, id)
        elif part.kind == "port":
            floating.let_go_of_port(tx, id)
            forget_mirrors(tx, id)
        tx.delete(id)


def _owned(status: InstanceStatus) -> list[str]:
    """Ids of all volumes and ports of an instance."""
    known = [status.port, status.volume, *status.ports.values(), *status.disks.values(), *status.retired]
    return [id for id in known if id]


def ended_for_good(instance: Instance) -> bool:
    """Whether the run that was asked for last is over (restart policies do not go with ``remove_on_exit``)."""
    status = instance.status
    return status.phase is Phase.STOPPED and status.epoch >= instance.spec.epoch > 0


def merged(kept: InstanceStatus, seen: InstanceStatus) -> InstanceStatus:
    """*kept* with what only a host can see taken from *seen*, and its new decisions added."""
    fields = {name: getattr(seen, name) for name in OBSERVED_FIELDS}
    known = {(d.at, d.what) for d in kept.decisions}
    fresh = [d for d in seen.decisions if (d.at, d.what) not in known]
    return msgspec.structs.replace(kept, **fields, decisions=_bounded([*kept.decisions, *fresh]))


def _bounded(decisions: Iterable[Decision], limit: int = 64) -> list[Decision]:
    whole = list(decisions)
    # The first ones tell how it was made, the last ones how it goes.
    return whole if len(whole) <= limit else [*whole[: limit // 2], *whole[-limit // 2 :]]
