"""The steps that make, change and remove a volume: one request to its host each, and what becomes of it written down."""

from typing import Any

from lamella.control.events import record
from lamella.control.storage.asking import Hosts, Tell, ask
from lamella.control.storage.conditions import READY, drop, of, put
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.lookup import held
from lamella.control.storage.parting import part_with_snapshots
from lamella.control.storage.placing import host_of
from lamella.control.storage.steps import Step
from lamella.model.errors import Conflict, LamellaError, Unavailable
from lamella.model.quantity import format_size
from lamella.model.storage import KeyWrap, Snapshot, StoragePhase, Volume, VolumeForm, VolumeStatus
from lamella.model.storage_requests import CreateVolume, DeleteVolume, LimitVolume, ResizeVolume
from lamella.store.store import Store, Transaction

CHANGED = "Changed"


class Making:
    """Takes the storekeeper's steps with volumes. Passphrases are held in memory until the volume is made, and nowhere else."""

    def __init__(self, store: Store, keeper: Keeper, hosts: Hosts) -> None:
        self._store = store
        self._keeper = keeper
        self._hosts = hosts
        self._passphrases: dict[str, str] = {}
        keeper.know("volume", self._take, self._failed)

    def keep_passphrase(self, id: str, passphrase: str) -> None:
        if passphrase:
            self._passphrases[id] = passphrase

    async def _take(self, volume: Volume, step: Step, tell: Tell) -> None:
        if step is Step.MAKE:
            await self._make(volume, tell)
        elif step is Step.CHANGE:
            await self._change(volume, tell)
        else:
            await self._remove(volume, tell)

    async def _make(self, volume: Volume, tell: Tell) -> None:
        request = CreateVolume(volume=volume, passphrase=self._passphrases.get(volume.id, ""))
        if volume.spec.source is not None:
            request.snapshot = await self._ready(volume.spec.source)
            request.source = await self._store.by_id(held(request.snapshot)[0])
        if volume.spec.encryption is KeyWrap.PASSPHRASE and not request.passphrase:
            raise Conflict(
                "the daemon ended before the volume was made, and its passphrase was written down nowhere",
                hint=f"lamella volume rm {volume.name}, and make it again",
            )
        seen: VolumeStatus = await ask(self._hosts.agent(volume.status.host), request, VolumeStatus, tell)
        self._passphrases.pop(volume.id, None)

        def write(tx: Transaction) -> None:
            current: Volume | None = tx.by_id(volume.id)
            if current is None:
                return
            status = current.status
            status.size, status.used, status.key = seen.size, seen.used, seen.key
            status.conditions = drop(status.conditions, READY)
            if status.phase is StoragePhase.PENDING:
                status.phase, status.observed_generation = StoragePhase.READY, volume.generation
                record(tx, current, "volume.ready", f"volume {current.name} is ready: {format_size(seen.size)}")
            tx.update(current)

        await self._store.write(write)

    async def _ready(self, snapshot_id: str) -> Snapshot:
        """The snapshot that the volume is to stand on, taken if it has not been yet."""
        await self._keeper.drive(snapshot_id)
        snapshot: Snapshot = await self._store.by_id(snapshot_id)
        if snapshot.status.phase is not StoragePhase.READY:
            told = next((item for item in snapshot.status.conditions if not item.status), None)
            raise Conflict(
                f"snapshot {snapshot.name} is {snapshot.status.phase}{f': {told.message}' if told else ''}",
                hint=told.hint if told else "lamella snapshot ls",
            )
        return snapshot

    async def _change(self, volume: Volume, tell: Tell) -> None:
        agent = self._hosts.agent(await self._store.read(lambda tx: host_of(tx, volume)))
        spec, size = volume.spec, volume.status.size
        if spec.size and spec.size != size:
            seen: VolumeStatus = await ask(agent, ResizeVolume(volume=volume, size=spec.size), VolumeStatus, tell)
            size = seen.size or spec.size
        if spec.form is VolumeForm.BLOCK:
            await ask(agent, LimitVolume(volume=volume), None, tell)

        def write(tx: Transaction) -> None:
            current: Volume | None = tx.by_id(volume.id)
            if current is None:
                return
            status = current.status
            if status.size != size:
                what = f"volume {current.name} has {format_size(size)} now; it had {format_size(status.size)}"
                record(tx, current, "volume.resized", what)
            status.size, status.observed_generation = size, volume.generation
            status.conditions = drop(status.conditions, CHANGED)
            tx.update(current)

        await self._store.write(write)

    async def _remove(self, volume: Volume, tell: Tell) -> None:
        if volume.status.host is not None:
            await ask(self._hosts.agent(volume.status.host), DeleteVolume(volume=volume), None, tell)
        self._passphrases.pop(volume.id, None)
        theirs = await self._store.write(lambda tx: _gone(tx, volume.id))
        for id in theirs:
            self._keeper.drive(id)

    def _failed(self, tx: Transaction, row: Any, step: Step, error: LamellaError) -> None:
        volume: Volume = row
        status = volume.status
        type = CHANGED if step is Step.CHANGE else READY
        status.conditions = put(status.conditions, of(error, type))
        if isinstance(error, Unavailable):
            tx.update(volume)
            return
        if step is Step.MAKE:
            self._passphrases.pop(volume.id, None)
            status.phase = StoragePhase.FAILED
            record(tx, volume, "volume.failed", f"volume {volume.name} cannot be made: {error.message}")
        elif step is Step.REMOVE:
            # It is there as it was: somebody still needs it.
            status.phase = StoragePhase.READY if status.observed_generation else StoragePhase.FAILED
            status.conditions = drop(status.conditions, READY)
            volume.deleted_at = None
            record(tx, volume, "volume.kept", f"volume {volume.name} cannot be removed: {error.message}")
        else:
            volume.spec.size = status.size or volume.spec.size
            volume = tx.update(volume)
            volume.status.observed_generation = volume.generation
            record(tx, volume, "volume.unchanged", f"volume {volume.name} stays as it was: {error.message}")
        tx.update(volume)


def _gone(tx: Transaction, id: str) -> list[str]:
    """Nothing is left of it: its snapshots go with it; ids of those that were taken for it, which can go now."""
    volume: Volume | None = tx.by_id(id)
    if volume is None:
        return []
    theirs = part_with_snapshots(tx, id)
    record(tx, volume, "volume.removed", f"volume {volume.name} is removed")
    tx.delete(id)
    return theirs
