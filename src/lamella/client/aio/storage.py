"""Pools, and the volumes and snapshots of a project."""

import builtins
from collections.abc import Mapping
from typing import Unpack

from lamella.client import calls, storage_calls
from lamella.client.aio.talk import Progress, Talk
from lamella.client.storage_calls import VolumeWishes
from lamella.client.storage_routes import SETTLE
from lamella.client.wish import Size
from lamella.model.storage import Pool, Snapshot, Volume
from lamella.model.storage_report import Report


class Volumes:
    """``layer.volumes``. *progress* is called with where an operation stands, each time that changes."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    async def list(self, *, all: bool = False, labels: Mapping[str, str] | None = None) -> builtins.list[Volume]:
        """Those with a life of their own; with *all* instances' own disks, too."""
        found, _ = await self._talk.find("volume", labels)
        return [volume for volume in found if all or volume.spec.owner is None]

    async def get(self, name: str) -> Volume:
        """:raise NotFound: when there is no such volume."""
        return await self._talk.ask(calls.get(self._talk.project, "volume", name))

    async def create(self, name: str, **wishes: Unpack[VolumeWishes]) -> Volume:
        """Make a volume, empty or from a *source*; it is ready afterwards, or nothing of it is there.

        :raise Invalid: when a wish is not understood. :raise NotFound: when there is no such pool or source.
        """
        return await self._talk.ask(storage_calls.create_volume(self._talk.project, name, wishes))

    async def set(self, name: str, **wishes: Unpack[VolumeWishes]) -> Volume:
        """Change limits (in force at once), ``shred`` or labels."""
        return await self._talk.ask(storage_calls.change_volume(self._talk.project, name, wishes))

    async def resize(self, name: str, size: Size, *, progress: Progress | None = None) -> Volume:
        """Grow it, or shrink it where nothing is lost, in use or not. :raise Unsupported: when something would be lost."""
        operation = await self._talk.ask(storage_calls.resize_volume(self._talk.project, name, size))
        storage_calls.ended(await self._talk.follow(operation, progress))
        return await self.get(name)

    async def rename(self, name: str, new: str) -> Volume:
        return await self._talk.ask(storage_calls.rename_volume(self._talk.project, name, new))

    async def attach(self, name: str, instance: str, target: str = "", *, read_only: bool = False) -> Volume:
        """Into an instance, mounted at *target*, or as a bare disk. :raise Conflict: when another one writes to it."""
        call = storage_calls.attach_volume(self._talk.project, name, instance, target, read_only=read_only)
        return await self._talk.ask(call)

    async def detach(self, name: str, instance: str) -> Volume:
        return await self._talk.ask(storage_calls.detach_volume(self._talk.project, name, instance))

    async def unlock(self, name: str, passphrase: str) -> Volume:
        """Let its host keep the key until its daemon ends."""
        return await self._talk.ask(storage_calls.unlock_volume(self._talk.project, name, passphrase))

    async def rekey(
        self, name: str, encryption: str | None = None, *, passphrase: str = "", new_passphrase: str = ""
    ) -> Volume:
        """Give it another key, wrapped by *encryption* (left out: as before); *passphrase* is the old one."""
        call = storage_calls.rekey_volume(
            self._talk.project, name, encryption, passphrase=passphrase, new_passphrase=new_passphrase
        )
        return await self._talk.ask(call)

    async def remove(self, name: str, *, force: bool = False) -> None:
        """With *force* its snapshots, too. :raise Conflict: when an instance names it, or it has snapshots."""
        await self._talk.ask(calls.remove(self._talk.project, "volume", name, force=force, wait=SETTLE))


class Snapshots:
    """``layer.snapshots``. A snapshot is called after what it is of: ``data@nightly``."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    async def list(self, of: str | None = None, *, all: bool = False) -> builtins.list[Snapshot]:
        """Those of the volume or instance *of*, or all; with *all* those that clones stand on, too."""
        found, _ = await self._talk.find("snapshot")
        mine = [item for item in found if of is None or item.name.partition("@")[0] == of]
        return [item for item in mine if all or item.spec.owner is None]

    async def get(self, name: str) -> Snapshot:
        """:raise NotFound: when there is no such snapshot."""
        return await self._talk.ask(calls.get(self._talk.project, "snapshot", name))

    async def create(
        self, of: str, name: str, *, instance: bool = False, consistent: bool = False, memory: bool = False
    ) -> Snapshot:
        """Of the volume *of*; with *instance* of all volumes of the instance *of*, at one instant. With *consistent* the guest's
        filesystems are frozen meanwhile; with *memory* the memory of the running instance *of* is kept with all its volumes.

        :raise Conflict: when there is no memory to keep. :raise Unsupported: when its level can keep none.
        """
        call = storage_calls.create_snapshot(
            self._talk.project, of, name, instance=instance, consistent=consistent, memory=memory
        )
        return await self._talk.ask(call)

    async def restore(
        self, name: str, *, memory: bool = True, start: bool | None = None, progress: Progress | None = None
    ) -> Snapshot:
        """Its volumes become what they were. When it holds a memory its instance goes on from that: at once, or with ``start=False`` when
        it is started next; with ``memory=False`` its disks alone go back.

        :raise Conflict: when an instance that runs has one of them, or is other hardware by now.
        """
        call = storage_calls.restore_snapshot(self._talk.project, name, memory=memory, start=start)
        operation = await self._talk.ask(call)
        storage_calls.ended(await self._talk.follow(operation, progress))
        return await self.get(name)

    async def remove(self, name: str) -> None:
        """:raise Conflict: when volumes stand on it."""
        await self._talk.ask(calls.remove(self._talk.project, "snapshot", name, wait=SETTLE))


class Pools:
    """``layer.pools``: they belong to the whole layer, whatever the project."""

    def __init__(self, talk: Talk) -> None:
        self._talk = Talk(talk.wire, "default")

    async def list(self) -> builtins.list[Pool]:
        found, _ = await self._talk.find("pool")
        return found

    async def get(self, name: str) -> Pool:
        """:raise NotFound: when there is no such pool."""
        return await self._talk.ask(calls.get("default", "pool", name))

    async def create(
        self,
        name: str,
        *,
        driver: str = "directory",
        path: str = "",
        options: Mapping[str, str] | None = None,
        warn_below: float | None = None,
    ) -> Pool:
        """Make a pool on every host. *warn_below* is the share of free space (0 to 1) under which the layer warns."""
        call = storage_calls.create_pool(name, driver, path, options or {}, warn_below=warn_below)
        return await self._talk.ask(call)

    async def scrub(self, name: str, *, repair: bool = True, progress: Progress | None = None) -> Report:
        """Read everything in it and compare with what it should be."""
        operation = await self._talk.ask(storage_calls.scrub_pool(name, repair=repair))
        return storage_calls.report(await self._talk.follow(operation, progress))

    async def remove(self, name: str) -> None:
        """Forget it; what lies there stays. :raise Conflict: when volumes are in it."""
        await self._talk.ask(calls.remove("default", "pool", name, wait=SETTLE))

    async def fsck(
        self, *, repair: bool = False, remove_orphans: bool = False, progress: Progress | None = None
    ) -> Report:
        """Compare what is known of volumes and snapshots with what lies in the pools."""
        operation = await self._talk.ask(storage_calls.fsck(repair=repair, remove_orphans=remove_orphans))
        return storage_calls.report(await self._talk.follow(operation, progress))
