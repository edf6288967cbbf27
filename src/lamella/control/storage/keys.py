"""Keys of encrypted volumes: unlocked for a host, and exchanged. A passphrase is passed on and written down nowhere."""

import msgspec

from lamella.control.backup.lookup import part_with_backups
from lamella.control.events import record
from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.attaching import check_usable
from lamella.control.storage.fitting import check_passphrase
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.lookup import find_volume
from lamella.control.storage.placing import host_of
from lamella.model.errors import Conflict
from lamella.model.requests import Principal
from lamella.model.storage import KeyWrap, Volume, VolumeStatus
from lamella.model.storage_bodies import VolumeRekey
from lamella.model.storage_requests import RekeyVolume, UnlockVolume
from lamella.store.store import Audit, Store, Transaction

# How long a snapshot may take to go, in seconds.
SNAPSHOT = 600.0


class Keys:
    """What can be done about a volume's key."""

    def __init__(self, store: Store, keeper: Keeper, hosts: Hosts) -> None:
        self._store = store
        self._keeper = keeper
        self._hosts = hosts

    async def unlock(self, who: Principal, project: str, name: str, passphrase: str) -> Volume:
        """Let its host keep the key until its daemon ends.

        :raise Conflict: when no passphrase wraps its key. :raise Forbidden: when it is another one.
        """
        volume = await self._one(project, name, "unlock", who)
        if volume.spec.encryption is not KeyWrap.PASSPHRASE:
            raise Conflict(f"volume {volume.name} needs no passphrase", hint=f"lamella volume show {volume.name}")
        host = await self._store.read(lambda tx: host_of(tx, volume))
        await ask(self._hosts.agent(host), UnlockVolume(volume=volume, passphrase=passphrase), None)
        await self._store.write(lambda tx: record(tx, volume, "volume.unlocked", f"{who.name} unlocked {volume.name}"))
        return await self._store.by_id(volume.id)

    async def rekey(self, who: Principal, project: str, name: str, body: VolumeRekey) -> Volume:
        """Another key; the old one opens nothing of the volume any more, nor of the snapshots for its next backups, which go.

        :raise Conflict: when it is open, has snapshots, or is being backed up.
        """
        volume = await self._one(project, name, "rekey", who)
        if volume.spec.encryption is None:
            raise Conflict(
                f"volume {volume.name} is not encrypted", hint="make one with --encrypt, and copy what is in this one"
            )
        wrap = body.encryption if isinstance(body.encryption, KeyWrap) else volume.spec.encryption
        check_passphrase(volume.spec.encryption, body.passphrase)
        check_passphrase(wrap, body.new_passphrase, field="new_passphrase")
        wanted = msgspec.structs.replace(volume, spec=msgspec.structs.replace(volume.spec, encryption=wrap))
        for snapshot in await self._store.write(lambda tx: part_with_backups(tx, volume)):
            await self._keeper.settle(snapshot, SNAPSHOT)
        request = RekeyVolume(volume=wanted, passphrase=body.passphrase, new_passphrase=body.new_passphrase)
        host = await self._store.read(lambda tx: host_of(tx, volume))
        seen: VolumeStatus = await ask(self._hosts.agent(host), request, VolumeStatus)

        def write(tx: Transaction) -> Volume:
            current: Volume = tx.by_id(volume.id) or volume
            settled = current.status.observed_generation == current.generation
            current.spec.encryption, current.status.key = wrap, seen.key
            current = tx.update(current)
            if settled:
                current.status.observed_generation = current.generation
            record(tx, current, "volume.rekeyed", f"{who.name} gave volume {volume.name} another key")
            return tx.update(current)

        return await self._store.write(write)

    async def _one(self, project: str, name: str, verb: str, who: Principal) -> Volume:
        def write(tx: Transaction) -> Volume:
            volume = find_volume(tx, project, name)
            check_usable(tx, volume)
            tx.audit(Audit(principal=who.name, verb=verb, subject=f"volume/{project}/{volume.name}"))
            return volume

        return await self._store.write(write)
