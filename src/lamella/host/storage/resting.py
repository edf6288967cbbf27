"""What waits until an instance has stopped: layers of its own disks whose snapshot went while it ran are merged then.

A running QEMU of 7.2 cannot merge layers that it was given as descriptors (docs/storage/levels.md). So the snapshot goes at once, and its
layer stays hidden below the disk. When a daemon ends in between, the next stop or drop merges it, or ``lamella fsck --repair``.
"""

import logging

from lamella.host.storage.driver import Layered
from lamella.host.storage.parts import Parts
from lamella.model.errors import LamellaError, NotFound
from lamella.model.storage import Volume, VolumeForm

log = logging.getLogger("lamella.host.storage")


async def tidy(parts: Parts, volumes: list[Volume]) -> None:
    """Merge what can be of *volumes*, each of which its own instance has had open."""
    for volume in volumes:
        if volume.spec.form is not VolumeForm.BLOCK:
            continue
        try:
            pool = parts.pools.get(volume.spec.pool)
            if not isinstance(pool, Layered):
                continue
            async with parts.locks.of([volume.id]):
                if not await parts.runs(volume):
                    await pool.tidy(volume.id)
        except NotFound:
            continue  # it went with its instance
        except LamellaError as error:
            log.warning("layers of volume %s stay: %s", volume.id, error)
