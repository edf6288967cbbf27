"""The services of a host's networks, kept as they are to be: one dnsmasq a network, metadata, and the rules that lead to them.

One task does everything, beside whoever starts instances: what is asked is noted, and it makes it so a moment later. It looks again when a
process ends, and every few seconds: at what runs, at the rules, and at the host's resolvers.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.network import resolvers
from lamella.host.network.driver import DesiredNetwork, Resident
from lamella.host.network.fabric import Fabric
from lamella.host.network.services import plan, process, rules
from lamella.host.network.services.asking import Metadata
from lamella.host.network.services.enforcing import Rules
from lamella.host.network.services.plan import Service, Site
from lamella.host.network.services.process import Begun, Running
from lamella.host.network.services.rules import Doors
from lamella.model.errors import LamellaError
from lamella.model.host import Capability

log = logging.getLogger("lamella.host.network")

# In seconds: what is asked in this time is done together; how often it looks again, and when something was refused; after a failure it
# is tried again, later and later.
_TOGETHER = 0.02
_ROUND, _LATER = 10.0, 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
# A process that lived this long did not fail.
_GOOD = 10.0
# A network whose process failed so often is not told to its instances.
_HOPELESS = 4


class _Server:
    """One network's process: what it was told, and how it goes. ``pid`` is 0 while none runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.service: Service | None = None
        self.pid = 0
        self.pidfd = -1
        self.since = 0.0
        self.failures = 0
        self.not_before = 0.0


class Services:
    """*networks* are those that are here, *site* says where the gateway of one is, *upstream* are files that name the host's resolvers."""

    def __init__(
        self,
        home: Home,
        fabric: Fabric,
        networks: Callable[[], Iterable[DesiredNetwork]],
        site: Callable[[DesiredNetwork], Site],
        upstream: tuple[Path, ...] = resolvers.SOURCES,
    ) -> None:
        self._home = home
        self._fabric = fabric
        self._networks = networks
        self._site = site
        self._upstream = upstream
        self._directory = home.run / "network" / "services"
        self._residents: list[Resident] = []
        self._servers: dict[str, _Server] = {}
        self._rules = Rules(fabric)
        self._metadata = Metadata(fabric)
        self._looked = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # --- what is asked

    def use(self, residents: Iterable[Resident]) -> None:
        """Serve exactly these from now on, on the networks that are here."""
        self._residents = list(residents)
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="network services")
        self._wake.set()

    def wake(self) -> None:
        """The networks have changed, or somebody changed what is in force."""
        self._wake.set()

    def lost(self) -> None:
        """Nothing is known of the rules in force: they are made anew."""
        self._rules.lost()
        self._wake.set()

    def nameservers(self, network: str) -> list[str]:
        """What instances on the network with this id ask: its gateway where dnsmasq answers, else the host's resolvers. Blocks shortly."""
        here = next((one for one in self._networks() if one.id == network), None)
        server = self._servers.get(network)
        hopeless = server is not None and server.failures >= _HOPELESS
        if self._task is None or here is None or hopeless or process.program() is None:
            return resolvers.nameservers(self._upstream)
        return [self._site(here).gateway]

    def finding(self) -> Capability:
        found = process.program()
        return Capability(
            name="network.dns",
            available=found is not None,
            value="dnsmasq" if found else "",
            reason=f"{found} gives names and addresses on every network"
            if found
            else "dnsmasq is not installed (apt install dnsmasq-base): no DHCP, instances ask the host's resolvers",
        )

    # --- how it is kept

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_TOGETHER)
            self._wake.clear()
            pause = _ROUND
            try:
                pause = await self._converge()
            except (LamellaError, OSError) as error:
                log.warning("services of networks: %s", error)
            except Exception:
                log.exception("services of networks")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _converge(self) -> float:
        """Make everything as it is to be; returns after how many seconds to look again."""
        found = await asyncio.to_thread(process.program)
        upstream = await asyncio.to_thread(resolvers.nameservers, self._upstream)
        residents = self._residents
        here = [(network, self._site(network)) for network in self._networks()]

        def compute() -> tuple[list[Service], dict[Path | None, Doors], dict[tuple[str, str], Resident]]:
            answered = here if found is not None else []
            made = [plan.service(network, site, residents, upstream) for network, site in answered]
            doors = rules.doors([site for _, site in here], made, [one.port for one in residents])
            return made, doors, {(one.port.network, one.port.address.partition("/")[0]): one for one in residents}

        services, doors, askers = await asyncio.to_thread(compute)
        await self._metadata.tell(here, askers)
        looked = asyncio.get_running_loop().time()
        if looked - self._looked >= _ROUND:
            # Seldom: reading thousands of elements takes longer than everything else.
            self._looked = looked
            await self._rules.compare()
        refused = not await self._rules.put(doors)
        alive = await asyncio.to_thread(process.running, self._home)
        for id in self._servers.keys() - {service.network for service in services}:
            self._let_go(self._servers.pop(id))
        pause = _LATER if refused else _ROUND
        kept: set[int] = set()
        for service in services:
            server = self._servers.setdefault(service.network, _Server(self._directory / service.network))
            try:
                pause = min(pause, await self._serve(server, service, alive))
            except (LamellaError, OSError) as error:
                # Its router may not be there yet.
                log.warning("network %s: %s", service.name, error)
                pause = min(pause, _LATER)
            kept.add(server.pid)
        await asyncio.to_thread(self._sweep, [one.pid for one in alive if one.pid not in kept])
        return pause

    async def _serve(self, server: _Server, service: Service, alive: list[Running]) -> float:
        """Have one network's process be as it is to be; returns after how many seconds to look again."""
        namespace = await self._fabric.in_layer("find a network", lambda seat: process.namespace_of(seat, service))
        same = [one for one in alive if one.arguments == service.arguments and one.namespace == namespace]
        if server.pid and server.pid not in {one.pid for one in same}:
            # It ends, or is not what is asked any more: another one begins when the sockets of this one are closed.
            pidfd = os.dup(server.pidfd)
            self._let_go(server)
            await asyncio.to_thread(process.finish, pidfd)
        if server.service is None or server.service.files != service.files:
            await asyncio.to_thread(process.write, server.directory, service.files)
            server.service = service
            tell = True
        else:
            tell = False
        if server.pid:
            if tell:
                with suppress(ProcessLookupError):
                    process.reads_again(server.pid, server.pidfd)
            await asyncio.to_thread(process.shorten, server.directory)
            return _ROUND
        loop = asyncio.get_running_loop()
        if same:
            with suppress(ProcessLookupError):
                self._hold(server, same[0].pid)
                process.reads_again(server.pid, server.pidfd)
                return _ROUND
        if (pause := server.not_before - loop.time()) > 0:
            return pause
        others = [one.pid for one in alive if f"--interface={service.site.interface}" in one.arguments]
        await asyncio.to_thread(process.end, others)
        try:
            pid = await self._start(server.directory, service)
            self._hold(server, pid)
        except (LamellaError, OSError) as error:
            return self._failed(server, str(error))
        return _ROUND

    async def _start(self, directory: Path, service: Service) -> int:
        argv = await asyncio.to_thread(process.prepare, self._home, directory, service)
        begun: list[Begun] = []
        try:
            await self._fabric.in_layer(
                f"start dnsmasq of network {service.name}",
                lambda seat: begun.append(process.begin(seat, argv, self._home, directory, service)),
            )
        except asyncio.CancelledError:
            # What was begun is found by the next one; the jailer is not left to itself.
            for one in begun:
                with suppress(LamellaError):
                    await asyncio.to_thread(process.told, one, directory, service)
            raise
        return await asyncio.to_thread(process.told, begun[0], directory, service)

    def _hold(self, server: _Server, pid: int) -> None:
        """:raise ProcessLookupError: when it has ended meanwhile."""
        server.pidfd = os.pidfd_open(pid)
        server.pid = pid
        loop = asyncio.get_running_loop()
        server.since = loop.time()
        loop.add_reader(server.pidfd, self._ended, server)

    def _ended(self, server: _Server) -> None:
        lived = asyncio.get_running_loop().time() - server.since
        self._let_go(server)
        if lived >= _GOOD:
            server.failures = 0
        self._failed(server, f"dnsmasq ended: {process.last_words(server.directory)}")
        self._wake.set()

    def _failed(self, server: _Server, why: str) -> float:
        """Note it; returns after how many seconds it is tried again: the first time at once."""
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**server.failures)
        server.failures += 1
        server.not_before = asyncio.get_running_loop().time() + pause
        log.warning("network %s: %s", server.service.name if server.service else "", why)
        return pause

    def _let_go(self, server: _Server) -> None:
        if server.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(server.pidfd)
            os.close(server.pidfd)
        server.pid, server.pidfd = 0, -1

    def _sweep(self, pids: list[int]) -> None:
        """End processes that serve nothing any more, and remove what they were told."""
        process.end(pids)
        if self._directory.is_dir():
            for place in self._directory.iterdir():
                if place.name not in self._servers:
                    shutil.rmtree(place, ignore_errors=True)

    # --- the end

    async def close(self) -> None:
        """Let go; everything stays in force."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for server in self._servers.values():
            self._let_go(server)
        self._metadata.close()
        self._servers, self._residents = {}, []
        self._rules.lost()

    async def teardown(self) -> None:
        """End every process of this layer, and forget what they were told."""
        await self.close()

        def remove() -> None:
            with suppress(LamellaError):
                found = process.group(self._home)
                if found.exists():
                    found.remove()
            shutil.rmtree(self._directory, ignore_errors=True)

        await asyncio.to_thread(remove)
