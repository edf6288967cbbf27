"""haproxy kept as it is to be: one process for all listeners of HTTP of this layer, started again when it ends."""

import asyncio
import logging
import os
import shutil
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.linux.processes import Child
from lamella.host.network.balance.desired import Backend, DesiredBalancer
from lamella.host.network.balance.http import plan, process
from lamella.host.network.fabric import Fabric
from lamella.model.errors import LamellaError, Unavailable
from lamella.model.host import Capability

log = logging.getLogger("lamella.host.network")

# In seconds: after a failure it is tried again, later and later.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class Proxy:
    """*changed* is called when the process that serves has ended."""

    def __init__(self, home: Home, fabric: Fabric, changed: Callable[[], None]) -> None:
        self._home = home
        self._fabric = fabric
        self._changed = changed
        self._directory = home.run / "network" / "balance"
        self._watched = -1
        self._pid = 0
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        # The configuration that it did not start with last, and why.
        self._refused: Path | None = None
        self._failure = ""

    async def serve(self, balancers: Iterable[DesiredBalancer], up: Callable[[str, Backend], bool]) -> dict[str, str]:
        """Have haproxy serve exactly these. Why not, by the id of those that it does not serve."""
        wanted = [one for one in balancers if any(map(plan.speaks_http, one.listeners))]
        failures, certificates = await asyncio.to_thread(_certificates, wanted)
        place = plan.Place(
            room=self._directory / "room", pidfile=self._directory / "pid", connections=process.connections()
        )
        text = plan.configuration(wanted, up, certificates, place)
        try:
            await self._keep(text)
        except LamellaError as error:
            return {one.id: error.message for one in wanted}
        return failures

    async def in_force(self) -> str:
        """The configuration that is served; empty when none is."""

        def read() -> str:
            serving = process.serving(self._directory, process.running(self._home))
            with suppress(OSError):
                return "" if serving is None else serving.file.read_text()
            return ""

        return await asyncio.to_thread(read)

    async def _keep(self, text: str) -> None:
        found = await asyncio.to_thread(process.running, self._home)
        if not text:
            self._let_go()
            process.retire_all(self._directory, found)
            return
        file = await asyncio.to_thread(process.write, self._directory, text)
        serving = process.serving(self._directory, found)
        if serving is not None and serving.file == file:
            process.retire(one for one in found if one != serving)
            self._watch(serving.pid)
            return
        clock = asyncio.get_running_loop().time()
        if file != self._refused:
            self._pause = _FIRST_PAUSE
        elif clock < self._not_before:
            raise Unavailable(self._failure)
        try:
            pid = await self._start(file)
        except (LamellaError, OSError) as error:
            self._refused = file
            self._failure = error.message if isinstance(error, LamellaError) else f"cannot start haproxy: {error}"
            self._not_before, self._pause = clock + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            raise Unavailable(self._failure) from error
        self._refused = None
        process.retire(found)
        self._watch(pid)

    async def _start(self, file: Path) -> int:
        argv = await asyncio.to_thread(process.prepare, self._home, self._directory, file)
        begun: list[Child] = []
        try:
            await self._fabric.in_layer(
                "start haproxy", lambda _: begun.append(process.begin(argv, self._home, self._directory))
            )
        except asyncio.CancelledError:
            # What was begun is found by the next one; what started it is not left to itself.
            for one in begun:
                with suppress(LamellaError):
                    await asyncio.to_thread(process.told, one, self._home, self._directory)
            raise
        return await asyncio.to_thread(process.told, begun[0], self._home, self._directory)

    def _watch(self, pid: int) -> None:
        if pid == self._pid:
            return
        self._let_go()
        try:
            self._watched = os.pidfd_open(pid)
        except ProcessLookupError:
            self._changed()
            return
        self._pid = pid
        asyncio.get_running_loop().add_reader(self._watched, self._ended)

    def _ended(self) -> None:
        log.warning("haproxy ended: %s", process.last_words(self._directory))
        self._let_go()
        self._changed()

    def _let_go(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
        self._watched, self._pid = -1, 0

    def finding(self) -> Capability:
        found = process.program()
        return Capability(
            name="network.balancer.http",
            available=found is not None,
            value="haproxy" if found is not None else "",
            reason=f"{found}" if found is not None else "haproxy is not installed (apt install haproxy)",
        )

    def close(self) -> None:
        """Let go; it serves on."""
        self._let_go()

    def teardown(self) -> None:
        """End all of them. Blocks."""
        self._let_go()
        with suppress(LamellaError):
            group = process.group(self._home)
            if group.exists():
                group.remove()
        shutil.rmtree(self._directory, ignore_errors=True)


def _certificates(balancers: Iterable[DesiredBalancer]) -> tuple[dict[str, str], dict[str, Path]]:
    """(why not, the file) by the balancer's id, of those that want HTTPS."""
    failures: dict[str, str] = {}
    found: dict[str, Path] = {}
    for balancer in balancers:
        if not any(listener.protocol == "https" for listener in balancer.listeners):
            continue
        path = Path(balancer.certificate)
        try:
            # What it does not take, haproxy does not start with, for anybody.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password=lambda: "")
        except ssl.SSLError:
            failures[balancer.id] = f"{path} is no certificate with its private key, in PEM"
        except (OSError, ValueError) as error:
            failures[balancer.id] = f"its certificate {path} cannot be read on this host: {error}"
        else:
            found[balancer.id] = path
    return failures, found
