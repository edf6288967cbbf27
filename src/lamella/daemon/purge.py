"""``lamellad --purge``: remove everything that bears this home's mark, then the home."""

import asyncio
import logging
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from lamella.daemon.wings import build_agent, compute_drivers
from lamella.host.compute.driver import Home
from lamella.host.linux import cgroup, mounts
from lamella.host.linux.cgroup import Cgroups
from lamella.host.linux.processes import all_pids, bears_mark
from lamella.host.linux.room import Room
from lamella.host.sharing.wing import settings_of
from lamella.model.errors import LamellaError

log = logging.getLogger("lamella.daemon.purge")


def purge(home: Home) -> None:
    """Instances, links, rules, groups, mounts, processes and files of this layer go. Nothing without the mark is touched.

    The caller holds the lock of the home, has one thread, and may end afterwards: its namespaces are the room's.
    """
    room = Room(home)
    with suppress(LamellaError):
        room.ensure()
        room.join()
        asyncio.run(_remove(home))
    kill_marked(home.mark)
    for problem in settings_of(home).restore():
        log.warning("%s", problem)
    Cgroups(cgroup.ROOT, home.mark).remove()
    room.destroy()
    for part in (home.state, home.run):
        shutil.rmtree(part, ignore_errors=True)


async def _remove(home: Home) -> None:
    for level, make in compute_drivers(home).items():
        driver = make(lambda _: None)
        try:
            with suppress(LamellaError):
                await driver.open()
            for id in await driver.inventory():
                await driver.remove(id)
        except LamellaError as error:
            log.warning("%s: %s", level, error)
        finally:
            await driver.close()
    agent = build_agent(home, "purge")
    try:
        await agent.network.teardown()
    finally:
        await agent.network.close()
    # What is mounted must be let go of before the home is removed, or its content would go with it.
    try:
        await agent.storage_wing.open()
        await agent.storage_wing.teardown()
    except LamellaError as error:
        log.warning("storage: %s", error)
    finally:
        await agent.storage_wing.close()
    mounts.release(home.run / "storage")


def kill_marked(mark: str) -> None:
    """End every process that carries *mark* in its environment, but this one."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [pid for pid in all_pids() if pid != os.getpid() and bears_mark(pid, mark) and not _is_zombie(pid)]
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
