"""The part of :class:`tests.storage_host.StorageHost` that keeps backups: in a repository that is in memory, too."""

from typing import Any

import msgspec

from lamella.model.backup import Backup, BackupNote, BackupSource, BackupStatus, InstanceRecord
from lamella.model.backup_requests import (
    BackUp,
    BackUpInstance,
    BackUpLayer,
    ForgetBackups,
    MountBackup,
    OpenRepository,
    ReadInstance,
    RepositoryMade,
    RestoreBackup,
    UnmountBackup,
    Verified,
    VerifyBackups,
)
from lamella.model.errors import Forbidden, NotFound
from lamella.model.resource import now
from lamella.model.storage import StoragePhase, VolumeStatus
from lamella.model.storage_report import Report, StorageFinding

KEY = "AAAA-BBBB"


class BackupHost:
    """``vault`` is what the repository holds, by engine id; ``flipped`` are those that are damaged in it; ``pruned`` counts prunes."""

    volumes: dict[str, dict[str, Any]]

    def __init__(self) -> None:
        self.vault: dict[str, Any] = {}
        self.flipped: set[str] = set()
        self.mounted: set[str] = set()
        self.pruned = 0

    def _open_repository(self, request: OpenRepository) -> RepositoryMade:
        if request.recovery_key and request.recovery_key != KEY:
            raise Forbidden("the key is not this repository's", hint="give its recovery key")
        return RepositoryMade(key="wrapped", credentials="sealed", engine_id="vault", recovery_key=KEY)

    def _store(self, backup: Backup, content: Any, note: BackupNote, base: Backup | None = None) -> BackupStatus:
        engine_id = f"{backup.id} in the vault"
        self.vault[engine_id] = content
        return BackupStatus(
            phase=StoragePhase.READY,
            host=backup.status.host,
            engine_id=engine_id,
            note=note,
            snapshot=backup.status.snapshot,
            taken_at=now(),
            incremental=base is not None and base.status.engine_id in self.vault,
            size=note.size,
        )

    def _back_up(self, request: BackUp) -> BackupStatus:
        volume, backup = request.volume, request.backup
        if volume.id not in self.volumes:
            raise NotFound(f"there is no volume {volume.name} here")
        kept = self.volumes[volume.id]
        if request.snapshot not in kept["snapshots"]:
            raise NotFound(f"volume {volume.name} has no such snapshot")
        note = BackupNote(
            backup=backup.id,
            name=backup.name,
            volume=volume.id,
            volume_name=volume.name,
            spec=volume.spec,
            size=kept["size"],
        )
        return self._store(backup, kept["snapshots"][request.snapshot], note, request.base)

    def _back_up_layer(self, request: BackUpLayer) -> BackupStatus:
        note = BackupNote(backup=request.backup.id, name=request.backup.name, of=BackupSource.LAYER)
        return self._store(request.backup, request.store, note)

    def _back_up_instance(self, request: BackUpInstance) -> BackupStatus:
        note = BackupNote(backup=request.backup.id, name=request.backup.name, of=BackupSource.INSTANCE)
        return self._store(request.backup, msgspec.json.encode(request.record), note)

    def _read_instance(self, request: ReadInstance) -> InstanceRecord:
        return msgspec.json.decode(self.vault[request.backup.status.engine_id], type=InstanceRecord)

    def _restore_backup(self, request: RestoreBackup) -> VolumeStatus:
        backup, volume = request.backup, request.volume
        if backup.status.engine_id not in self.vault:
            raise NotFound("it is not in the repository", hint="is what it is in mounted?")
        assert backup.status.note is not None
        kept = self.volumes.setdefault(volume.id, {"used": 4096, "key": "", "snapshots": {}, "limits": None})
        kept["data"], kept["size"] = self.vault[backup.status.engine_id], backup.status.note.size
        return VolumeStatus(size=kept["size"], used=kept["used"], key=kept["key"])

    def _verify_backups(self, request: VerifyBackups) -> Verified:
        damaged = [item for item in request.backups if item.status.engine_id in self.flipped]
        findings = [
            StorageFinding(subject=f"backup/{item.name}", problem="a part of it is damaged", hint="make a new one")
            for item in damaged
        ]
        report = Report(checked=len(request.backups), findings=findings)
        return Verified(report=report, damaged=[item.status.engine_id for item in damaged])

    def _forget_backups(self, request: ForgetBackups) -> None:
        for backup in request.backups:
            self.vault.pop(backup.status.engine_id, None)
        self.pruned += request.prune

    def _mount_backup(self, request: MountBackup) -> str:
        self.mounted.add(request.backup.id)
        return f"/run/backup/{request.backup.id}"

    def _unmount_backup(self, request: UnmountBackup) -> None:
        self.mounted.discard(request.backup.id)
