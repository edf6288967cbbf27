"""Control and hosts as processes of their own: certificates, the desk that hosts call, the agents that control calls."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.control.layer import Layer
from lamella.host.compute.driver import Home
from lamella.model.assignment import Assignments, InstanceReport
from lamella.model.balancer import BalancerReport
from lamella.model.errors import Invalid, NotFound, Unavailable
from lamella.model.host import HostStatus
from lamella.model.storage import StorageEvent
from lamella.wire import listener
from lamella.wire.agent import RemoteAgent
from lamella.wire.agent_service import serve_agent
from lamella.wire.certificates import Authority, Bundle
from lamella.wire.desk import RemoteDesk, serve_desk

if TYPE_CHECKING:
    from lamella.daemon.roles import Role

log = logging.getLogger("lamella.daemon")

RETRY = 1.0


def issue(home: Home, name: str) -> Path:
    """Make the certificate bundle of the host *name*; returns its path, a secret to be carried to that host.

    :raise Invalid: when *name* may not name a host.
    """
    path = home.state / "bundles" / f"{name}.json"
    Authority.open(home.state / "authority").issue("host", name).save(path)
    return path


def split_address(text: str) -> tuple[str, int]:
    """``ADDRESS:PORT``, IPv6 in brackets.

    :raise Invalid: when it is not one.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Invalid(f"{text!r} is not ADDRESS:PORT", hint="write it like 192.0.2.1:7443")
    return host, int(port)


class JoiningDesk:
    """The desk for hosts of other processes: whoever registers with an address is called back there."""

    def __init__(self, layer: Layer, bundle: Bundle) -> None:
        self._layer = layer
        self._bundle = bundle
        self._agents: dict[str, RemoteAgent] = {}

    def connect(self, host_id: str, name: str, address: str) -> None:
        """Let control reach the host *name* at *address*."""
        agent = RemoteAgent(address, self._bundle, name=name)
        self._agents[host_id] = agent
        self._layer.connect_host(host_id, agent)
        self._layer.presence.watch(host_id, agent)

    async def register(self, name: str, status: HostStatus, address: str) -> str:
        id = await self._layer.desk.register(name, status, address)
        before = self._agents.pop(id, None)
        if before is not None:
            await before.close()
        self.connect(id, name, address)
        log.info("host %s registered, reached at %s", name, address)
        return id

    async def assignments(self, host: str, since: int, wait: float) -> Assignments:
        return await self._layer.desk.assignments(host, since, wait)

    async def report(self, host: str, reports: list[InstanceReport]) -> None:
        await self._layer.desk.report(host, reports)

    async def report_balancers(self, host: str, reports: list[BalancerReport]) -> None:
        await self._layer.desk.report_balancers(host, reports)

    async def tell(self, host: str, events: list[StorageEvent]) -> None:
        await self._layer.desk.tell(host, events)

    async def close(self) -> None:
        for agent in self._agents.values():
            await agent.close()


@asynccontextmanager
async def open_desk(home: Home, role: "Role", layer: Layer) -> AsyncGenerator[None]:
    """Serve the desk on ``role.listen``, with a certificate of the layer's own authority."""
    assert role.listen is not None
    place = split_address(role.listen)
    bundle = Authority.open(home.state / "authority").issue("control", "control", addresses=[place[0]])
    desk = JoiningDesk(layer, bundle)
    for host in (await layer.store.list("host")).items:
        if host.spec.address:
            desk.connect(host.id, host.name, host.spec.address)

    async def resolve(name: str) -> str | None:
        with suppress(NotFound):
            return (await layer.store.get("host", "default", name)).id
        return None

    sock = listener.bind_tcp(*place)
    async with _meanwhile(serve_desk(desk, sock, bundle, resolve=resolve), name="desk"):
        try:
            yield
        finally:
            await desk.close()


@asynccontextmanager
async def run_host(home: Home, role: "Role") -> AsyncGenerator[None]:
    """Be one host of a layer whose control is elsewhere.

    :raise Invalid: when the daemon was not told where control is, where to listen, or who it is.
    """
    from lamella.daemon.wings import build_agent

    if role.control is None or role.listen is None or role.bundle is None:
        raise Invalid(
            "a host needs --control ADDRESS:PORT, --listen ADDRESS:PORT and --bundle FILE",
            hint="make the bundle where control runs: lamellad --issue NAME",
        )
    bundle = Bundle.load(role.bundle)
    async with AsyncExitStack() as stack:
        desk = RemoteDesk(f"https://{role.control}", bundle)
        stack.push_async_callback(desk.close)
        agent = build_agent(home, bundle.name, address=f"https://{role.listen}", underlay=role.underlay)
        stack.push_async_callback(agent.close)
        sock = listener.bind_tcp(*split_address(role.listen))
        await agent.look()
        await stack.enter_async_context(_meanwhile(serve_agent(agent, sock, bundle), name="agent"))
        while True:
            try:
                await agent.join(desk)
                break
            except Unavailable as error:
                log.warning("control does not answer yet: %s", error)
                await asyncio.sleep(RETRY)
        yield


@asynccontextmanager
async def _meanwhile(work: Coroutine[None, None, None], *, name: str) -> AsyncGenerator[None]:
    """*work* goes on inside. A task group would bury the one sentence of an error that is raised there."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
