"""A host whose storage is in memory, for what is above hosts: it keeps its word about requests, and fails when it is told to.

``crash`` names a request after whose work, and before whose answer, the connection is lost, ``lose`` for how many of them in a row;
``refuse`` one that is answered with an error.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from tests.backup_host import BackupHost
from tests.carry_host import CarryHost

from lamella.model.errors import Conflict, Invalid, LamellaError, NoRoom, NotFound, Unavailable, Unsupported
from lamella.model.host import Capability, HostStatus
from lamella.model.instance import InstanceStatus, Isolation, Phase, Power
from lamella.model.resource import Condition, now
from lamella.model.storage import Feature, PoolStatus, SnapshotStatus, StoragePhase, VolumeStatus
from lamella.model.storage_report import Orphan
from lamella.model.storage_requests import (
    CheckStorage,
    ClosePool,
    CreateVolume,
    DeleteVolume,
    DropSnapshot,
    ForgetMemory,
    LimitVolume,
    MeasureVolumes,
    OpenPool,
    RekeyVolume,
    RemoveOrphan,
    Report,
    ResizeVolume,
    RestoreSnapshot,
    ScrubPool,
    StorageFinding,
    StorageProgress,
    TakeSnapshot,
    UnlockVolume,
)
from lamella.model.stream import ExecSpec, Exit, Stdout

FREE = 10 << 30
FEATURES = [Feature.BLOCK, Feature.FILESYSTEM, Feature.THIN, Feature.SNAPSHOT, Feature.CLONE]


class Ended:
    """A process that has said *said* and ended with *code*, as soon as it may."""

    def __init__(self, may: asyncio.Event, said: bytes, code: int) -> None:
        self._may = may
        self._frames: list[Any] = [*([Stdout(said)] if said else []), Exit(code)]

    async def send(self, frame: Any) -> None: ...

    async def receive(self) -> Any:
        await self._may.wait()
        return self._frames.pop(0) if self._frames else None

    async def close(self) -> None: ...


class StorageHost(CarryHost, BackupHost):
    """Storage, and instances that run by being said to: :meth:`act` does what is assigned."""

    def __init__(self, name: str = "alpha") -> None:
        CarryHost.__init__(self)
        BackupHost.__init__(self)
        self.name = name
        self.pools: dict[str, PoolStatus] = {"default": self.room()}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.passphrases: dict[str, str] = {}
        self.asked: list[str] = []
        self.refuse: dict[str, LamellaError] = {}
        self.crash: set[str] = set()
        self.lose: dict[str, int] = {}
        self.slow: dict[str, asyncio.Event] = {}
        # Volumes that this host keeps for itself, which no row names.
        self.hidden: set[str] = set()
        # Why an instance cannot be made to wait, when it cannot.
        self.unable: Callable[[Any], Condition | None] = lambda instance: None
        self.execs: list[tuple[str, list[str]]] = []
        self.exits: list[tuple[bytes, int]] = []
        self.hang = asyncio.Event()
        self.hang.set()
        # Ids of snapshots whose memory it keeps, and names of instances that do not begin.
        self.memories: set[str] = set()
        self.never: set[str] = set()
        # What own disks of instances began as: the snapshot and the volume that it is of, by the disk.
        self.clones: dict[str, tuple[str, str]] = {}
        self._acting: asyncio.Task[None] | None = None

    async def exec(self, id: str, spec: ExecSpec) -> "Ended":
        """What runs says and ends as the next of ``exits`` has it, and well after that; it does so when ``hang`` is set."""
        self.execs.append((id, spec.command))
        return Ended(self.hang, *(self.exits.pop(0) if self.exits else (b"", 0)))

    @staticmethod
    def room() -> PoolStatus:
        return PoolStatus(capacity=2 * FREE, free=FREE, features=[str(item) for item in FEATURES])

    async def facts(self) -> HostStatus:
        capabilities = [Capability(name=f"compute.{level}", available=True) for level in Isolation]
        return HostStatus(phase="ready", capabilities=capabilities, architecture="amd64", pools=dict(self.pools))

    async def wake(self, revision: int) -> None: ...

    async def mechanisms(self, id: str) -> list[Any]:
        return []

    async def judgements(self, ids: list[str]) -> dict[str, list[Any]]:
        return {}

    async def storage(self, request: Any) -> AsyncIterator[StorageProgress]:
        name = type(request).__name__
        self.asked.append(name)
        yield StorageProgress(step=name, done=1, total=2, unit="steps")
        if name in self.slow:
            await self.slow[name].wait()
        try:
            if name in self.refuse:
                raise self.refuse[name]
            result = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())(request)
        except LamellaError as error:
            yield StorageProgress(error_code=error.code, error=error.message, hint=error.hint)
            return
        if name in self.crash or self.lose.get(name, 0):
            self.crash.discard(name)
            self.lose[name] = max(0, self.lose.get(name, 0) - 1)
            raise Unavailable("the host's daemon went away", hint="wait for it")
        yield StorageProgress(result=msgspec.Raw(msgspec.json.encode(result)))

    def _volume(self, volume: Any) -> dict[str, Any]:
        if volume.id not in self.volumes:
            raise NotFound(f"there is no volume {volume.name} here")
        return self.volumes[volume.id]

    def _status(self, volume: Any) -> VolumeStatus:
        kept = self.volumes[volume.id]
        return VolumeStatus(size=kept["size"], used=kept["used"], key=kept["key"])

    def _open_pool(self, request: OpenPool) -> PoolStatus:
        if request.pool.spec.driver != "directory":
            raise Unsupported(f"this host has no storage driver {request.pool.spec.driver}", field="spec.driver")
        self.pools[request.pool.name] = self.room()
        return self.room()

    def _close_pool(self, request: ClosePool) -> None:
        self.pools.pop(request.pool.name, None)

    def _create_volume(self, request: CreateVolume) -> VolumeStatus:
        volume = request.volume
        if volume.spec.pool not in self.pools:
            raise Unavailable(f"pool {volume.spec.pool} is not open here")
        if volume.spec.size > 1 << 50:
            raise Invalid(f"{volume.spec.size} bytes are beyond this driver", hint="ask for less", field="spec.size")
        data = b""
        key = f"wrapped {volume.id}" if volume.spec.encryption else ""
        if request.source is not None:
            kept = self.volumes[request.source.id]
            data, key = kept["snapshots"][request.snapshot.id], kept["key"]
        self.passphrases[volume.id] = request.passphrase
        self.volumes.setdefault(
            volume.id,
            {"size": volume.spec.size, "used": 4096, "key": key, "data": data, "snapshots": {}, "limits": None},
        )
        return self._status(volume)

    def _delete_volume(self, request: DeleteVolume) -> None:
        if any(volume == request.volume.id for _, volume in self.clones.values()):
            raise Conflict(f"disks stand on volume {request.volume.name}")
        self.clones.pop(request.volume.id, None)
        self.volumes.pop(request.volume.id, None)

    def _resize_volume(self, request: ResizeVolume) -> VolumeStatus:
        kept = self._volume(request.volume)
        if request.size < kept["size"] // 2:
            raise Unsupported("what is in it would not fit", hint="remove something first")
        kept["size"] = request.size
        return self._status(request.volume)

    def _limit_volume(self, request: LimitVolume) -> None:
        self._volume(request.volume)["limits"] = request.volume.spec.limits

    def _rekey_volume(self, request: RekeyVolume) -> VolumeStatus:
        if self._volume(request.volume)["snapshots"]:
            raise Conflict(f"volume {request.volume.name} has snapshots, which the old key would still open")
        self._volume(request.volume)["key"] = f"another {request.volume.spec.encryption}"
        self.passphrases[request.volume.id] = request.new_passphrase
        return self._status(request.volume)

    def _unlock_volume(self, request: UnlockVolume) -> None:
        if self.passphrases[request.volume.id] != request.passphrase:
            raise Conflict("this passphrase does not open it", hint="try another")

    def _take_snapshot(self, request: TakeSnapshot) -> SnapshotStatus:
        sizes: dict[str, int] = {}
        for volume in request.volumes:
            kept = self.volumes.setdefault(
                volume.id, {"size": 1 << 20, "used": 0, "key": "", "data": b"", "snapshots": {}, "limits": None}
            )
            kept["snapshots"].setdefault(request.snapshot.id, kept["data"])
            sizes[volume.id] = kept["size"]
        frozen = request.snapshot.spec.consistent and request.instance is not None
        if request.snapshot.spec.memory:
            if request.instance is None:
                raise Conflict("it does not run: there is no memory to keep")
            self.memories.add(request.snapshot.id)
            frozen = True
        return SnapshotStatus(
            phase=StoragePhase.READY,
            consistency="application" if frozen else "crash",
            taken_at=now(),
            pause=0.004,
            sizes=sizes,
            memory=4096 if request.snapshot.spec.memory else 0,
        )

    def _drop_snapshot(self, request: DropSnapshot) -> None:
        if any(snapshot == request.snapshot.id for snapshot, _ in self.clones.values()):
            raise Conflict(f"disks stand on snapshot {request.snapshot.name}")
        if request.snapshot.spec.memory or request.snapshot.status.memory:
            self.memories.discard(request.snapshot.id)
        for volume in request.volumes:
            self.volumes.get(volume.id, {"snapshots": {}})["snapshots"].pop(request.snapshot.id, None)

    def _forget_memory(self, request: ForgetMemory) -> None:
        self.memories.discard(request.snapshot.id)

    def _restore_snapshot(self, request: RestoreSnapshot) -> None:
        for volume in request.volumes:
            kept = self._volume(volume)
            kept["data"] = kept["snapshots"][request.snapshot.id]
            kept["size"] = request.snapshot.status.sizes[volume.id]

    def _measure_volumes(self, request: MeasureVolumes) -> dict[str, VolumeStatus]:
        return {volume.id: self._status(volume) for volume in request.volumes}

    def _check_storage(self, request: CheckStorage) -> Report:
        lost = [volume for volume in request.volumes if volume.id not in self.volumes and volume.spec.owner is None]
        findings = [
            StorageFinding(subject=f"volume {volume.name}", problem="it is gone", hint="restore it") for volume in lost
        ]
        for id in sorted(self.volumes.keys() - set(request.known) - self.hidden):
            orphan = Orphan(pool="default", volume=id)
            findings.append(StorageFinding(subject=id, problem="nobody knows it", orphan=orphan))
        return Report(checked=len(request.volumes), findings=findings)

    def _remove_orphan(self, request: RemoveOrphan) -> None:
        del self.volumes[request.orphan.volume]

    def _scrub_pool(self, request: ScrubPool) -> Report:
        return Report(checked=len(self.volumes), bytes=sum(kept["used"] for kept in self.volumes.values()))

    # --- instances

    def act(self, desk: Any, host: str) -> None:
        """From now on instances do what control wants of them, at once."""
        self._acting = asyncio.create_task(self._act(desk, host))

    async def stop(self) -> None:
        if self._acting is not None:
            self._acting.cancel()
            await asyncio.gather(self._acting, return_exceptions=True)

    def _state(self, instance: Any) -> InstanceStatus:
        if instance.name in self.never:
            why = Condition(type="Ready", status=False, reason=NoRoom.code, message="its memory does not fit")
            return InstanceStatus(
                phase=Phase.FAILED,
                observed_generation=instance.generation,
                conditions=[why],
                epoch=instance.status.epoch,
            )
        failed = self.unable(instance) if instance.spec.power is Power.READY else None
        if failed is not None:
            return InstanceStatus(
                phase=Phase.FAILED, observed_generation=instance.generation, conditions=[failed], epoch=0
            )
        phases = {Power.RUNNING: Phase.RUNNING, Power.SUSPENDED: Phase.SUSPENDED, Power.READY: Phase.READY}
        return InstanceStatus(
            phase=phases.get(instance.spec.power, Phase.STOPPED),
            observed_generation=instance.generation,
            epoch=instance.spec.epoch,
        )

    async def _act(self, desk: Any, host: str) -> None:
        from lamella.model.assignment import InstanceReport

        since = 0
        while True:
            news = await desk.assignments(host, since, 5)
            since = news.revision
            reports = []
            for asked in news.instances:
                instance = asked.instance
                status = self._state(instance)
                if asked.volume is not None and asked.volume.spec.source:
                    self.clones[asked.volume.id] = (asked.volume.spec.source, asked.source)
                retired = [part.id for part in (*asked.retired_volumes, *asked.retired_ports)]
                gone = instance.deleted_at is not None
                own = [part for part in (asked.volume, *asked.disks.values()) if part is not None and gone]
                for part in (*own, *asked.retired_volumes):
                    if part.spec.owner == instance.id:
                        assert all(volume != part.id for _, volume in self.clones.values()), "disks stand on it"
                        self.volumes.pop(part.id, None)
                        self.clones.pop(part.id, None)
                reports.append(InstanceReport(id=instance.id, status=status, removed=gone, released=retired))
            if reports:
                await desk.report(host, reports)
