"""What a daemon that was killed has left open in the processes, and nobody will ever close: copies, maps, mirrors' targets.

They hold the locks of their files, so their volumes could not be restored, removed or copied again. The daemon that adopts the processes
has nothing under way yet: what belongs to no volume that is written down as open is such a remain, and so is a layer of an open volume
that it does not stand on.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.storage.process import nodes
from lamella.host.storage.process.disks import node_names, query_exports, remove_exports
from lamella.host.storage.process.records import Opened

log = logging.getLogger("lamella.host.storage")

# Seconds for a node that is in use till a connection that was cut off is gone.
_PATIENCE = 30.0


async def drop(monitor: Monitor, opened: Iterable[Opened]) -> None:
    """Close what belongs to none of *opened*, whose layers are settled. Jobs that nobody follows are cancelled by now.

    What cannot be closed is logged and stays.

    :raise Unavailable: when the process is gone, or does not let go of an export.
    """
    layers = {nodes.tag(one.id): nodes.names(one.id, one.node) for one in opened}
    # Exports are called <kind>-<tag of the volume>.
    await remove_exports(monitor, {id for id in await query_exports(monitor) if id[4:] not in layers})
    end = time.monotonic() + _PATIENCE
    while there := {name for name in await node_names(monitor) if _stray(name, layers)}:
        refused = ""
        for name in sorted(there, key=_height):
            try:
                await monitor.execute("blockdev-del", {"node-name": name})
            except Refused as error:
                refused = error.reason
        if refused and time.monotonic() > end:
            log.warning("the storage process does not close what a killed daemon left: %s", refused)
            return
        if refused:
            await asyncio.sleep(0.01)


def _stray(name: str, layers: dict[str, set[str]]) -> bool:
    kind, _, rest = name.partition("-")
    if kind in ("cpy", "cut"):
        return True
    if name.startswith("#"):  # QEMU's own, which goes with the node that it is part of
        return False
    kept = layers.get(rest[:8])
    return kept is None or (kind == "fmt" and name not in kept)


def _height(name: str) -> tuple[int, str]:
    """Those that stand on others first."""
    order = ("cpy", "cut", "hol", "top", "lks", "nbd", "fmt", "own", "prt")
    kind = name[:3]
    return (order.index(kind) if kind in order else len(order), name)
