"""The open table: which volume is open here, for whom, and how. It outlives the daemon, not the machine."""

import logging
from pathlib import Path

from lamella.host.storage.records import OpenVolume, Records
from lamella.host.storage.ways import SERVED
from lamella.model.errors import Conflict, LamellaError
from lamella.model.storage import Volume, VolumeForm

log = logging.getLogger("lamella.host.storage")

BOOT = Path("/proc/sys/kernel/random/boot_id")


class OpenTable:
    """Written down before a volume is opened and struck out after it is closed, so that what is open is always in it.

    What writes (``enter``, ``update``, ``leave``) syncs a disk: it is called in a thread, by whoever holds the volume's lock.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._boot = BOOT.read_text().strip()
        self._open: dict[str, OpenVolume] = {}
        # What may be open: nobody can tell for whom.
        self._lost: dict[str, LamellaError] = {}

    def load(self) -> None:
        """What was open when the daemon ended. After a restart of the machine nothing is."""
        for id in self._records.open.ids():
            try:
                record = self._records.open.read(id, OpenVolume)
            except LamellaError as error:
                log.error("volume %s: %s", id, error)
                self._lost[id] = error
                continue
            if record is not None and record.boot == self._boot:
                self._open[id] = record
            else:
                self._records.open.forget(id)

    def __contains__(self, id: str) -> bool:
        return id in self._open

    def get(self, id: str) -> OpenVolume | None:
        return self._open.get(id)

    @property
    def all(self) -> dict[str, OpenVolume]:
        return dict(self._open)

    def enter(
        self,
        volume: Volume,
        way: str,
        user: str,
        *,
        read_only: bool,
        why: str = "",
        socket_owner: int | None = None,
    ) -> OpenVolume:
        """Write down that *user* has it open; who has it already keeps the way in that it has.

        :raise Conflict: when a block volume is open for somebody else and one of them writes, or in another way.
        :raise Corrupt: when it may be open, and what was written down of that is broken.
        """
        self._require_known(volume.id)
        known = self._open.get(volume.id)
        others = {name: reads for name, reads in known.users.items() if name != user} if known is not None else {}
        if known is not None and others and volume.spec.form is VolumeForm.BLOCK:
            first = next((name for name, reads in others.items() if not reads), next(iter(others)))
            if not read_only or not all(others.values()):
                doing = "writes to" if not others[first] else "reads"
                raise Conflict(
                    f"volume {volume.name} is open already: instance {first} {doing} it",
                    hint="detach it there first, or attach it read-only everywhere",
                )
            if known.way != way:
                raise Conflict(
                    f"volume {volume.name} is open already, in another way, for instance {first}",
                    hint="containers and modules share one mount, machines one disk; a clone serves both",
                )
        if known is not None and user in known.users:
            way, why = known.way, known.why
        served = way == SERVED
        record = OpenVolume(
            volume=volume,
            way=way,
            why=why,
            users={**others, user: read_only},
            boot=self._boot,
            socket_owner=socket_owner if served else None,
            machine=user if served else "",
        )
        self._records.open.write(volume.id, record)
        self._open[volume.id] = record
        return record

    def update(self, volume: Volume) -> None:
        """Its spec or key has changed."""
        known = self._open.get(volume.id)
        if known is not None:
            known.volume = volume
            self._records.open.write(volume.id, known)

    def users(self, id: str) -> dict[str, bool]:
        """Instances' ids, and whether each only reads."""
        known = self._open.get(id)
        return dict(known.users) if known is not None else {}

    def leave(self, id: str, user: str) -> None:
        """*user* has let go of it; the last one strikes it out."""
        known = self._open.get(id)
        if known is None:
            return
        known.users.pop(user, None)
        if known.users:
            self._records.open.write(id, known)
        else:
            self._records.open.forget(id)
            del self._open[id]

    def of(self, user: str) -> set[str]:
        return {id for id, record in self.all.items() if user in record.users}

    def require_closed(self, volume: Volume, to: str) -> None:
        """:raise Conflict: when it is open; *to* is what cannot be done then. :raise Corrupt: when nobody can tell."""
        self._require_known(volume.id)
        known = self._open.get(volume.id)
        if known is not None:
            raise Conflict(
                f"volume {volume.name} cannot be {to}: it is attached to {', '.join(sorted(known.users))}",
                hint="detach it, or stop the instance, first",
            )

    def _require_known(self, id: str) -> None:
        """One whose record was mended or removed meanwhile is known again."""
        if id in self._lost:
            record = self._records.open.read(id, OpenVolume)
            del self._lost[id]
            if record is not None and record.boot == self._boot:
                self._open[id] = record
