"""The layer as its doors see it: every verb that the API has, each a few lines that hand on to the part that knows."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, cast

import msgspec

from lamella.control.backup.state import dump_of
from lamella.control.backup.wing import BackupWing
from lamella.control.bulletin import Bulletin
from lamella.control.comparison import compare, why_not
from lamella.control.contract import contract_of
from lamella.control.defaults import ensure_defaults
from lamella.control.desk import Desk
from lamella.control.doctor import diagnose
from lamella.control.events import record
from lamella.control.forking import Forking
from lamella.control.handing_out import promised_by_host
from lamella.control.hosts import Hosts as HostPolicies
from lamella.control.images import Images
from lamella.control.instances import Instances
from lamella.control.intent import PowerVerb
from lamella.control.lookup import find_image, need_project
from lamella.control.merging import merge_labels
from lamella.control.metrics import Measured, exposition
from lamella.control.network.balancers import Balancers
from lamella.control.network.firewalls import Firewalls
from lamella.control.network.floating import Addresses
from lamella.control.network.guarantees import guarded
from lamella.control.network.looking import traced
from lamella.control.network.networks import Networks
from lamella.control.network.routers import Routers
from lamella.control.presence import Presence
from lamella.control.storage.asking import Hosts
from lamella.control.storage.promises import described
from lamella.control.storage.replicas import kept_again
from lamella.control.storage.wing import StorageWing
from lamella.control.templates.keeper import Keeper as TemplateKeeper
from lamella.control.templates.templates import Templates, counted
from lamella.model.assignment import HostAgent
from lamella.model.board import DesktopTicket, Input
from lamella.model.capture import CaptureSpec
from lamella.model.contract import Comparison, Contract, Mechanism, WhyNot
from lamella.model.errors import Conflict, DeadlineExceeded, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.files import FileInfo
from lamella.model.firewall import Protocol
from lamella.model.host import Host
from lamella.model.instance import Instance, Isolation, Phase
from lamella.model.judgement import Judgement
from lamella.model.kinds import AnyResource
from lamella.model.operation import Operation
from lamella.model.requests import (
    About,
    Diagnosis,
    Explanation,
    Freed,
    ImageCreate,
    InstanceCreate,
    InstanceFork,
    Items,
    Principal,
    ResourcePatch,
    ResourcePut,
)
from lamella.model.signals import signal_number
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.trace import Trace
from lamella.model.usage import LogEntry, Usage
from lamella.store.store import Audit, Change, Store, Transaction
from lamella.version import __version__

SIGKILL = 9
# How long a host may take to say what it shares now, in seconds.
LOOK = 10.0
# Inside the class the name ``list`` is a verb.
Listing = list[FileInfo]


class Layer:
    """Control of one layer over its store. Hosts are reached through :class:`HostAgent` objects, given by ``connect_host``."""

    def __init__(self, store: Store, *, role: str, seed: str, database: str = "") -> None:
        self.store = store
        self.role = role
        self.bulletin = Bulletin(store)
        self.desk = Desk(store, self.bulletin)
        self.presence = Presence(store)
        self.instances = Instances(store, self.bulletin, seed=seed, away=self.presence.away)
        self.images = Images(store, self.bulletin)
        self.networks, self.firewalls = Networks(store), Firewalls(store)
        self.routers, self.addresses = Routers(store), Addresses(store)
        self.balancers, self.hosts = Balancers(store), HostPolicies(store)
        self.storage = StorageWing(store, self.bulletin, Hosts(self.presence.away), self.instances)
        self.forking = Forking(
            store, self.storage.hosts, self.storage.keeper, self.storage.operations, self.instances, seed=seed
        )
        self.backup = BackupWing(store, self.storage, self.instances, dump_of(database))
        self.templates = Templates(store, self.bulletin)
        self.warm = TemplateKeeper(store, self.bulletin, self.storage.keeper, self.storage.hosts, seed=seed)
        self._agents: dict[str, HostAgent] = {}
        self._joining: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Make what every layer has (project, pool and network ``default``), and begin to listen."""
        await ensure_defaults(self.store)
        await self.bulletin.open()
        await self.images.open()
        await self.storage.open()
        await self.backup.open()
        await self.warm.open()

    async def close(self) -> None:
        await self.presence.close()
        for task in tuple(self._joining):
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)
        await self.warm.close()
        await self.backup.close()
        await self.storage.close()
        await self.images.close()
        await self.bulletin.close()

    def connect_host(self, host_id: str, agent: HostAgent) -> None:
        """From now on *agent* answers for the host *host_id*."""
        self._agents[host_id] = agent
        self.storage.hosts.join(host_id, agent)
        task = asyncio.create_task(self.storage.keeper.joined(host_id), name=f"storage of {host_id}")
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def _agent(self, instance: Instance) -> HostAgent:
        host = instance.status.host or ""
        if why := self.presence.away(host):
            raise Unavailable(
                f"the host of {instance.name} is away: {why}", hint="`lamella host ls` tells when it is back"
            )
        agent = self._agents.get(host)
        if agent is None:
            raise Unavailable(
                f"the host of {instance.name} is not connected", hint="lamella host ls tells which hosts are"
            )
        return agent

    def _any_agent(self) -> HostAgent:
        if not self._agents:
            raise Unavailable("no host is connected", hint="start lamellad --role host, or --role all")
        present = [agent for id, agent in self._agents.items() if not self.presence.away(id)]
        if not present:
            why = "; ".join(self.presence.away(id) for id in self._agents)
            raise Unavailable(f"every host is away: {why}", hint="`lamella host ls` tells when one is back")
        return present[0]

    # --- reading

    async def about(self, who: Principal) -> About:
        return About(version=__version__, role=self.role, revision=await self.store.revision(), you=who.name)

    async def get(self, who: Principal, project: str, kind: str, name: str) -> AnyResource:
        found = await self.store.get(kind, project, name)
        if kind == "template":
            return (await self.store.read(lambda tx: counted(tx, [found])))[0]
        return await self._as_it_is_now(found) if kind == "host" else found

    async def _as_it_is_now(self, host: Host) -> Host:
        """With what changes while it runs, as its agent says it; as it was told last, when that does not answer."""
        agent = self._agents.get(host.id)
        if agent is not None and not self.presence.away(host.id):
            with suppress(LamellaError, TimeoutError):
                async with asyncio.timeout(LOOK):
                    facts = await agent.facts()
                status = msgspec.structs.replace(host.status, sharing=facts.sharing, topology=facts.topology)
                return msgspec.structs.replace(host, status=status)
        return host

    async def list(
        self, who: Principal, project: str, kind: str, *, labels: dict[str, str], cursor: str, limit: int
    ) -> Items:
        page = await self.store.list(kind, project=project, labels=labels or None, cursor=cursor, limit=limit)
        if not page.items and project != "default":
            await self.store.read(lambda tx: need_project(tx, project))
        if kind == "template":
            items = await self.store.read(lambda tx: counted(tx, page.items))
            page = msgspec.structs.replace(page, items=items)
        return Items(items=page.items, cursor=page.cursor, revision=page.revision)

    async def watch(self, who: Principal, project: str, kind: str | None, since: int) -> AsyncIterator[Change]:
        async for change in self.store.watch(since):
            if change.project == project and (kind is None or change.kind == kind):
                yield change

    # --- instances: intent

    async def create_instance(
        self, who: Principal, project: str, body: InstanceCreate, *, wait: float, idempotency_key: str | None
    ) -> Instance:
        return await self.instances.create(who, project, body, wait=wait, idempotency_key=idempotency_key)

    async def put_instance(
        self, who: Principal, project: str, name: str, body: ResourcePut, *, expected: int | None, wait: float
    ) -> Instance:
        return await self.instances.put(who, project, name, body, expected=expected, wait=wait)

    async def patch(
        self,
        who: Principal,
        project: str,
        kind: str,
        name: str,
        body: ResourcePatch,
        *,
        expected: int | None,
        wait: float,
    ) -> AnyResource:
        if kind == "instance":
            return await self.instances.patch(who, project, name, body, expected=expected, wait=wait)
        if kind == "volume":
            return await self.storage.volumes.patch(who, project, name, body, expected=expected, wait=wait)
        if kind == "pool":
            return await self.storage.pools.patch(who, project, name, body, expected=expected)
        if kind == "network":
            return await self.networks.patch(who, project, name, body, expected=expected)
        if kind == "firewall":
            return await self.firewalls.patch(who, project, name, body, expected=expected)
        if kind == "router":
            return await self.routers.patch(who, project, name, body, expected=expected)
        if kind == "address":
            return await self.addresses.patch(who, project, name, body, expected=expected)
        if kind == "host":
            return await self.hosts.patch(who, project, name, body, expected=expected)
        if kind == "balancer":
            return await self.balancers.patch(who, project, name, body, expected=expected)
        if kind == "template":
            return await self.templates.patch(who, project, name, body, expected=expected, wait=wait)
        if isinstance(body.spec, dict):
            raise Unsupported(f"the spec of a {kind} cannot be changed", hint="labels can", field="spec")

        def write(tx: Transaction) -> AnyResource:
            found = tx.get(kind, project, name) or tx.by_id(name)
            if found is None or found.kind != kind or found.project != project:
                raise NotFound(f"no {kind} is called {name!r} in project {project}")
            if isinstance(body.labels, dict):
                merge_labels(found.labels, body.labels)
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"{kind}/{project}/{name}"))
            return tx.update(found, expected=expected)

        return await self.store.write(write)

    async def delete(
        self, who: Principal, project: str, kind: str, name: str, *, force: bool, expected: int | None, wait: float
    ) -> None:
        if kind == "instance":
            await self.instances.delete(who, project, name, force=force, expected=expected, wait=wait)
        elif kind == "image":
            await self.images.delete(who, project, name, force=force, expected=expected)
        elif kind == "pool":
            await self.storage.pools.delete(who, project, name, expected=expected, wait=wait)
        elif kind == "volume":
            await self.storage.volumes.delete(who, project, name, force=force, expected=expected, wait=wait)
        elif kind == "snapshot":
            await self.storage.snapshots.delete(who, project, name, expected=expected, wait=wait)
        elif kind == "repository":
            await self.backup.repositories.delete(who, project, name, force=force)
        elif kind == "backup":
            await self.backup.backups.delete(who, project, name)
        elif kind == "policy":
            await self.backup.policies.delete(who, project, name)
        elif kind == "replication":
            await self.storage.replications.delete(who, project, name)
        elif kind == "network":
            await self.networks.delete(who, project, name, expected=expected)
        elif kind == "firewall":
            await self.firewalls.delete(who, project, name, expected=expected)
        elif kind == "router":
            await self.routers.delete(who, project, name, expected=expected)
        elif kind == "address":
            await self.addresses.delete(who, project, name, expected=expected)
        elif kind == "balancer":
            await self.balancers.delete(who, project, name, expected=expected)
        elif kind == "template":
            await self.templates.delete(who, project, name, expected=expected)
        elif kind in ("operation", "event"):
            await self._forget(who, project, kind, name)
        else:
            raise Unsupported(f"a {kind} cannot be removed by hand", hint="it goes with whatever owns it")

    async def _forget(self, who: Principal, project: str, kind: str, name: str) -> None:
        def write(tx: Transaction) -> None:
            found = tx.get(kind, project, name) or tx.by_id(name)
            if found is None or found.kind != kind or found.project != project:
                raise NotFound(f"no {kind} is called {name!r} in project {project}")
            if kind == "operation" and found.status.phase == "running":
                raise Conflict(f"operation {name} is still running", hint="wait until it has ended")
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"{kind}/{project}/{name}"))
            tx.delete(found.id)

        await self.store.write(write)

    async def power(
        self, who: Principal, project: str, name: str, verb: PowerVerb, *, timeout: float | None, wait: float
    ) -> Instance:
        return await self.instances.power(who, project, name, verb, timeout=timeout, wait=wait)

    async def fork(
        self,
        who: Principal,
        project: str,
        name: str,
        body: InstanceFork,
        *,
        wait: float,
        idempotency_key: str | None,
    ) -> Operation:
        return await self.forking.create(who, project, name, body, wait=wait, idempotency_key=idempotency_key)

    async def kill(self, who: Principal, project: str, name: str, signal: str) -> Instance:
        number = signal_number(signal)
        instance = await self._running(project, name, paused=number == SIGKILL)
        if number == SIGKILL:
            # Intent, so that no restart policy undoes what was killed by hand.
            return await self.instances.power(who, project, name, "stop", timeout=0, wait=30)
        await self._agent(instance).kill(instance.id, number)
        await self.store.write(
            lambda tx: tx.audit(Audit(principal=who.name, verb=f"kill {number}", subject=f"instance/{project}/{name}"))
        )
        return await self.store.by_id(instance.id)

    async def wait_for(self, who: Principal, project: str, name: str, condition: str, timeout: float) -> Instance:
        instance = await self.store.get("instance", project, name)
        return await self.instances.wait_for(instance, condition, timeout=timeout)

    # --- instances: through their host

    async def _running(self, project: str, name: str, *, paused: bool = False) -> Instance:
        """The instance, when it runs, or is *paused* and that will do."""
        instance: Instance = await self.store.get("instance", project, name)
        if instance.status.phase in (Phase.PENDING, Phase.STARTING) and instance.deleted_at is None:
            # Somebody who asks right after `run -d` waits a moment rather than being refused.
            instance = await self.instances.wait_for(instance, "settled", timeout=30)
        if instance.status.phase is Phase.PAUSED:
            if paused:
                return instance
            raise Conflict(f"{instance.name} is paused", hint=f"lamella resume {instance.name}")
        if instance.status.phase is Phase.SUSPENDED:
            raise Conflict(f"{instance.name} is suspended", hint=f"lamella resume {instance.name}")
        if instance.status.phase is not Phase.RUNNING:
            raise Conflict(
                f"{instance.name} is {instance.status.phase}, not running", hint=f"lamella start {instance.name}"
            )
        return instance

    async def exec(self, who: Principal, project: str, name: str, spec: ExecSpec) -> ProcessStream:
        instance = await self._running(project, name)
        return await self._agent(instance).exec(instance.id, spec)

    async def attach(self, who: Principal, project: str, name: str, *, start: bool) -> ProcessStream:
        if start:
            instance = await self.instances.begin_attached(who, project, name)
        else:
            instance = await self._running(project, name)
        return await self._agent(instance).attach(instance.id, start=start)

    async def logs(
        self, who: Principal, project: str, name: str, *, follow: bool, tail: int | None, since: datetime | None
    ) -> AsyncIterator[LogEntry]:
        instance: Instance = await self.store.get("instance", project, name)
        if instance.spec.epoch == 0:
            # It never ran, and nobody asked it to.
            return
        if instance.status.phase is Phase.PENDING:
            # Somebody who asks right after `run -d` waits a moment rather than being refused.
            with suppress(DeadlineExceeded):
                await self.instances.wait_for(instance, "settled", timeout=30)
        async for entry in self._agent(instance).logs(instance.id, follow=follow, tail=tail, since=since):
            yield entry

    async def stat(self, who: Principal, project: str, name: str, path: str) -> FileInfo:
        instance = await self._running(project, name)
        return await self._agent(instance).stat(instance.id, path)

    async def list_directory(self, who: Principal, project: str, name: str, path: str) -> Listing:
        instance = await self._running(project, name)
        return await self._agent(instance).list_directory(instance.id, path)

    async def read_file(self, who: Principal, project: str, name: str, path: str) -> AsyncIterator[bytes]:
        instance = await self._running(project, name)
        async for piece in self._agent(instance).read_file(instance.id, path):
            yield piece

    async def write_file(
        self,
        who: Principal,
        project: str,
        name: str,
        path: str,
        data: AsyncIterator[bytes],
        *,
        mode: int,
        uid: int,
        gid: int,
    ) -> None:
        instance = await self._running(project, name)
        await self._agent(instance).write_file(instance.id, path, data, mode=mode, uid=uid, gid=gid)

    async def make_directory(
        self, who: Principal, project: str, name: str, path: str, *, mode: int, uid: int, gid: int
    ) -> None:
        instance = await self._running(project, name)
        await self._agent(instance).make_directory(instance.id, path, mode=mode, uid=uid, gid=gid)

    async def usage(self, who: Principal, project: str) -> dict[str, Usage]:
        page = await self.store.list("instance", project=project, limit=10_000)
        running: dict[str, Any] = {}
        for instance in page.items:
            if instance.status.phase in (Phase.RUNNING, Phase.PAUSED):
                running.setdefault(instance.status.host or "", []).append(instance)
        found: dict[str, Usage] = {}
        for host, instances in running.items():
            if host in self._agents and not self.presence.away(host):
                try:
                    seen = await self._agents[host].usage([instance.id for instance in instances])
                except Unavailable:
                    # What the others use is worth knowing all the same.
                    continue
                found |= {instance.name: seen[instance.id] for instance in instances if instance.id in seen}
        return found

    async def metrics(self, who: Principal) -> str:
        """Every instance of every project. A host that does not answer is left out of what was measured."""
        instances, hosts = await self.store.read(lambda tx: (tx.list("instance"), tx.list("host")))
        names = {host.id: host.name for host in hosts}
        found = {
            item.id: Measured(instance=item, host=names.get(item.status.host or "", ""))
            for item in cast("list[Instance]", instances)
        }

        async def ask(host: str, agent: HostAgent) -> None:
            ids = [
                id
                for id, row in found.items()
                if row.instance.status.host == host and row.instance.status.phase in (Phase.RUNNING, Phase.PAUSED)
            ]
            if not ids or self.presence.away(host):
                return
            with suppress(LamellaError):
                usage, judgements = await agent.usage(ids), await _judgements(agent, ids)
                for id in ids:
                    row = found[id]
                    found[id] = Measured(
                        instance=row.instance, host=row.host, usage=usage.get(id), judgements=judgements.get(id, [])
                    )

        await asyncio.gather(*(ask(host, agent) for host, agent in tuple(self._agents.items())))
        return exposition(found.values())

    async def contract(self, who: Principal, project: str, name: str) -> Contract:
        instance: Instance = await self.store.get("instance", project, name)
        mechanisms: list[Mechanism] = []
        judgements: list[Judgement] = []
        if instance.status.phase in (Phase.RUNNING, Phase.PAUSED):
            agent = self._agent(instance)
            mechanisms = await agent.mechanisms(instance.id)
            judgements = (await _judgements(agent, [instance.id])).get(instance.id, [])
        await self.storage.replications.look(instance.status.volumes.values())
        volumes, replicas, guards, host = await self.store.read(
            lambda tx: (
                described(tx, instance),
                kept_again(tx, instance),
                guarded(tx, instance),
                promised_by_host(tx, instance),
            )
        )
        return contract_of(instance, mechanisms, volumes, replicas, guards, host, judgements)

    async def explain(self, who: Principal, project: str, name: str) -> Explanation:
        instance: Instance = await self.store.get("instance", project, name)
        next_steps = [f"{c.reason}: {c.message}" for c in instance.status.conditions if not c.status]
        return Explanation(instance=instance.name, decisions=instance.status.decisions, next_steps=next_steps)

    async def trace(
        self, who: Principal, project: str, name: str, *, to: str, protocol: Protocol, port: int, type: int
    ) -> Trace:
        """What becomes of the first packet that instance *name* sends *to* an address or another instance."""
        return await self.store.read(lambda tx: traced(tx, project, name, to, protocol, port, type))

    async def compare(self, who: Principal) -> Comparison:
        return await self.store.read(lambda tx: compare(tx.list("host")))

    async def why_not(self, who: Principal, level: Isolation) -> WhyNot:
        return await self.store.read(lambda tx: why_not(level, tx.list("host")))

    # --- instances that are whole machines

    async def reset(self, who: Principal, project: str, name: str) -> None:
        instance = await self._running(project, name)
        await self._agent(instance).reset(instance.id)
        audit = Audit(principal=who.name, verb="reset", subject=f"instance/{project}/{instance.name}")

        def note(tx: Transaction) -> None:
            record(tx, instance, "instance.reset", f"{who.name} pressed the reset button")
            tx.audit(audit)

        await self.store.write(note)

    async def screenshot(self, who: Principal, project: str, name: str) -> bytes:
        instance = await self._running(project, name, paused=True)
        return await self._agent(instance).screenshot(instance.id)

    async def input(self, who: Principal, project: str, name: str, input: Input) -> None:
        instance = await self._running(project, name)
        await self._agent(instance).input(instance.id, input)

    async def desktop(self, who: Principal, project: str, name: str, *, kind: str) -> DesktopTicket:
        instance = await self._running(project, name, paused=True)
        ticket = await self._agent(instance).desktop(instance.id, kind)
        audit = Audit(principal=who.name, verb="desktop", subject=f"instance/{project}/{instance.name}")
        await self.store.write(lambda tx: tx.audit(audit))
        return ticket

    async def screen(self, who: Principal, project: str, name: str, *, kind: str) -> ProcessStream:
        instance = await self._running(project, name, paused=True)
        return await self._agent(instance).screen(instance.id, kind)

    async def dump(self, who: Principal, project: str, name: str, *, crash: bool) -> AsyncIterator[bytes]:
        instance: Instance = await self.store.get("instance", project, name)
        if not crash:
            instance = await self._running(project, name, paused=True)
        audit = Audit(principal=who.name, verb="dump", subject=f"instance/{project}/{instance.name}")
        await self.store.write(lambda tx: tx.audit(audit))
        async with aclosing(_generator(self._agent(instance).dump(instance.id, crash=crash))) as pieces:
            async for piece in pieces:
                yield piece

    async def capture(self, who: Principal, project: str, name: str, wish: CaptureSpec) -> AsyncIterator[bytes]:
        instance = await self._running(project, name, paused=True)
        audit = Audit(principal=who.name, verb="capture", subject=f"instance/{project}/{instance.name}")
        await self.store.write(lambda tx: tx.audit(audit))
        async with aclosing(_generator(self._agent(instance).capture(instance.id, wish))) as pieces:
            async for piece in pieces:
                yield piece

    # --- images and the house

    async def export_image(self, who: Principal, project: str, name: str, *, format: str) -> AsyncIterator[bytes]:
        image = await self.store.read(lambda tx: find_image(tx, project, name))
        async with aclosing(_generator(self._any_agent().export_image(image.status.digest, format))) as pieces:
            async for piece in pieces:
                yield piece

    async def create_image(self, who: Principal, project: str, body: ImageCreate, *, wait: float) -> Operation:
        return await self.images.create(who, project, body, self._any_agent(), wait=wait)

    async def collect_images(self, who: Principal) -> Freed:
        return Freed(bytes=await self.images.collect(who, self._any_agent()))

    async def doctor(self, who: Principal) -> Diagnosis:
        for id, agent in self._agents.items():
            if self.presence.away(id):
                continue
            # One that has just gone away is a finding as soon as its presence says so, and no reason to say nothing.
            with suppress(Unavailable):
                facts = await agent.facts()
                host = await self.store.by_id(id)
                await self.desk.register(host.name, facts, host.spec.address)

        def look(tx: Transaction) -> Diagnosis:
            return Diagnosis(
                findings=diagnose(
                    hosts=tx.list("host"),
                    pools=tx.list("pool"),
                    images=tx.list("image"),
                    instances=tx.list("instance"),
                )
            )

        return await self.store.read(look)


async def _judgements(agent: HostAgent, ids: list[str]) -> dict[str, list[Judgement]]:
    """None at all where the host is older than judging is."""
    with suppress(NotFound):
        return await agent.judgements(ids)
    return {}


def _generator(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Whoever leaves in the middle has it end at once, not when it is collected."""
    return cast("AsyncGenerator[bytes]", pieces)
