"""A wing over a home of its own, with real pools, a real storage process, loop devices and mounts."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lamella.daemon.purge import kill_marked
from lamella.host.compute.driver import Home, MountedVolume
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import all_pids, bears_mark
from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.pools import MakePool
from lamella.host.storage.volumes import Volumes
from lamella.host.storage.wing import Attachment
from lamella.model.errors import LamellaError, error_for
from lamella.model.instance import InstanceSpec, Isolation
from lamella.model.resource import new_resource
from lamella.model.storage import (
    Snapshot,
    SnapshotSpec,
    SnapshotStatus,
    Volume,
    VolumeForm,
    VolumeMount,
    VolumeSpec,
    VolumeStatus,
)
from lamella.model.storage_requests import (
    AnyStorageRequest,
    CreateVolume,
    DeleteVolume,
    DropSnapshot,
    Report,
    ResizeVolume,
    RestoreSnapshot,
    TakeSnapshot,
)

T = TypeVar("T")
MIB = 1 << 20
DRIVERS: dict[str, MakePool] = {"directory": DirectoryDriver}


class VolumesLab:
    """One home. ``wing`` is replaced by :meth:`restart`, as by a daemon that was killed and started again."""

    def __init__(self, home: Home | None = None, drivers: Mapping[str, MakePool] | None = None) -> None:
        # Short: sockets lie in it.
        self.home = home or Home(path=Path(tempfile.mkdtemp(prefix="lv-")), mark=f"lamella-lv{os.urandom(3).hex()}")
        self.home.state.mkdir(exist_ok=True)
        self.home.run.mkdir(exist_ok=True)
        self._drivers = dict(drivers or DRIVERS)
        self.events: list[tuple[str, str, str]] = []
        self.wing = self._new()

    def _new(self) -> Volumes:
        wing = Volumes(self.home, self._drivers)
        wing.on_event(lambda *event: self.events.append(event))
        return wing

    async def restart(self) -> None:
        """What is in memory is gone; what is on disk and runs stays."""
        await self.wing.close()
        await self.reopen()

    async def reopen(self) -> None:
        """The wing was closed, or its daemon killed."""
        self.wing = self._new()
        await self.wing.open()

    async def ask(self, request: AnyStorageRequest, kind: type[T]) -> T:
        """Its result; its error is raised as control would."""
        async for line in self.wing.request(request):
            if line.error_code:
                raise error_for(line.error_code)(line.error, hint=line.hint)
            if bytes(line.result):
                return msgspec.json.decode(line.result, type=kind)
        raise AssertionError("a request without an end")

    async def create(self, volume: Volume, **more: Any) -> Volume:
        volume.status = await self.ask(CreateVolume(volume=volume, **more), VolumeStatus)
        return volume

    async def delete(self, volume: Volume) -> None:
        await self.ask(DeleteVolume(volume=volume), type(None))

    async def resize(self, volume: Volume, size: int) -> Volume:
        volume.status = await self.ask(ResizeVolume(volume=volume, size=size), VolumeStatus)
        return volume

    async def take(self, *volumes: Volume, consistent: bool = False, snapshot: Snapshot | None = None) -> Snapshot:
        snapshot = snapshot or new_snapshot(*volumes, consistent=consistent)
        snapshot.status = await self.ask(TakeSnapshot(snapshot=snapshot, volumes=list(volumes)), SnapshotStatus)
        return snapshot

    async def drop(self, snapshot: Snapshot, *volumes: Volume) -> None:
        await self.ask(DropSnapshot(snapshot=snapshot, volumes=list(volumes)), type(None))

    async def restore(self, snapshot: Snapshot, *volumes: Volume) -> None:
        await self.ask(RestoreSnapshot(snapshot=snapshot, volumes=list(volumes)), type(None))

    async def attach(
        self, volume: Volume, user: str, level: Isolation = Isolation.CONTAINER, *, read_only: bool = False
    ) -> MountedVolume:
        mount = VolumeMount(volume=volume.name, target="/data", read_only=read_only)
        spec = InstanceSpec(image="busybox", isolation=level, volumes=[mount])
        return await self.wing.attach(Attachment(volume=volume, mount=mount, user=user, uid=0, spec=spec))

    @property
    def pool(self) -> Path:
        return self.home.state / "pools" / "default"

    def processes(self) -> list[int]:
        return [pid for pid in all_pids() if bears_mark(pid, self.home.mark) and pid != os.getpid()]

    def mounted(self) -> list[str]:
        return [entry.point for entry in mounts.below(self.home.path)]

    def loops(self) -> list[str]:
        """Loop devices over files of this home."""
        found: list[str] = []
        for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if entry.read_text().startswith(str(self.home.path)):
                    found.append(entry.parent.parent.name)
            except OSError:
                continue
        return found

    async def end(self) -> None:
        """Close everything and look whether anything is left."""
        try:
            await self.wing.teardown()
            await self.wing.close()
            open_mounts = [point for point in self.mounted() if "/mounts/" in point]
            assert not open_mounts, f"still mounted: {open_mounts}"
            assert not self.loops(), "loop devices are left"
        finally:
            await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        kill_marked(self.home.mark)
        mounts.release(self.home.path)
        deadline = time.monotonic() + 90
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(LamellaError, OSError):
            Cgroups(ROOT, self.home.mark).remove()
        shutil.rmtree(self.home.path, ignore_errors=True)


class Guest:
    """A process that has files of the storage process open, as a machine does (volumes_guest.py)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()

    async def hear(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), 90)).decode().strip()

    async def write(self, content: bytes, offset: int = 0, file: int = 0) -> None:
        await self.say(f"write {file} {offset} {content.hex()}")
        assert await self.hear() == "written"

    async def read(self, size: int, offset: int = 0, file: int = 0) -> bytes:
        await self.say(f"read {file} {offset} {size}")
        return bytes.fromhex(await self.hear())


@contextlib.asynccontextmanager
async def guest_of(*paths: Path) -> AsyncIterator[Guest]:
    """A guest with these disks; it is gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parent / "volumes_guest.py"),
        *map(str, paths),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    guest = Guest(process)
    try:
        assert await guest.hear() == "ready"
        yield guest
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait_for(process.wait(), 90)


def new_volume(name: str = "data", size: int = 64 * MIB, **spec: Any) -> Volume:
    return new_resource("volume", name, VolumeSpec(size=size, **spec), VolumeStatus())


def ext4_volume(name: str = "data", size: int = 64 * MIB, **spec: Any) -> Volume:
    return new_volume(name, size, filesystem="ext4", **spec)


def directory_volume(name: str = "data") -> Volume:
    return new_volume(name, 0, form=VolumeForm.FILESYSTEM)


def new_snapshot(*volumes: Volume, consistent: bool = False) -> Snapshot:
    spec = SnapshotSpec(volumes=[volume.id for volume in volumes], consistent=consistent)
    return new_resource("snapshot", "now", spec, SnapshotStatus())


def problems(report: Report) -> list[str]:
    return [f"{finding.subject}: {finding.problem}" for finding in report.findings]
