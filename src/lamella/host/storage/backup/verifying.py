"""Whether what was backed up would come back: the repository is checked, a share of it read, and a sample of each backup restored and
compared with what was read when it was made."""

import asyncio
import shutil
from hashlib import sha256
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.linux.blocking import blocking
from lamella.host.storage.backup.engine import Engine
from lamella.host.storage.backup.repositories import Repositories
from lamella.host.storage.requests import Tell
from lamella.model.backup import Backup
from lamella.model.backup_requests import ForgetBackups, Verified, VerifyBackups
from lamella.model.errors import Corrupt, NotFound
from lamella.model.storage_report import Report, StorageFinding

# Errors of restic that come of what is broken in it, and not of what is in the way.
_BROKEN = (Corrupt, NotFound)


class Verifying:
    """Answers VerifyBackups and ForgetBackups."""

    def __init__(self, home: Home, repositories: Repositories) -> None:
        self._home, self._repositories = home, repositories

    async def verify(self, request: VerifyBackups, tell: Tell) -> Verified:
        """:class:`VerifyBackups`."""
        engine = await self._repositories.engine(request.repository)
        result = Verified(report=Report())
        tell("check", 0, 0, "")
        async with self._repositories.lock(request.repository).alone():
            await self._check(engine, request, result, tell)
        for number, backup in enumerate(request.backups):
            tell("restore a sample", number, len(request.backups), "backups")
            if backup.status.note is None or not backup.status.engine_id:
                continue
            async with self._repositories.lock(request.repository).with_others():
                await self._sample(engine, backup, result)
            result.report.checked += 1
        return result

    async def _check(self, engine: Engine, request: VerifyBackups, result: Verified, tell: Tell) -> None:
        damage = await engine.check(request.share)
        for problem in damage.problems:
            result.report.findings.append(
                StorageFinding(subject=f"repository/{request.repository.name}", problem=problem)
            )
        if not damage.problems:
            return
        tell("find what is hit", 0, 0, "")
        every = {backup.status.engine_id: backup for backup in (*request.all, *request.backups)}
        every.pop("", None)
        # A check that names no pack has found the structure itself broken.
        hit = await engine.hit(damage.packs, list(every)) if damage.packs else list(every)
        for id in hit:
            self._damaged(result, every[id], "a part of it is damaged in the repository")

    def _damaged(self, result: Verified, backup: Backup, problem: str) -> None:
        if backup.status.engine_id not in result.damaged:
            result.damaged.append(backup.status.engine_id)
        result.report.findings.append(
            StorageFinding(
                subject=f"backup/{backup.name}",
                problem=problem,
                hint="make a new backup: what the volume still has is stored again when the damaged one is removed",
            )
        )

    async def _sample(self, engine: Engine, backup: Backup, result: Verified) -> None:
        note = backup.status.note
        assert note is not None
        place = self._home.run / "backup" / f"verify-{backup.id}"
        await blocking(_fresh, place)
        try:
            if note.samples:
                await engine.restore(backup.status.engine_id, place, include=list(note.samples))
            for name, digest in note.samples.items():
                seen, size = await blocking(_digest, place / name)
                result.bytes += size
                if seen != digest:
                    self._damaged(result, backup, f"{name} comes back other than it was backed up")
        except _BROKEN as error:
            self._damaged(result, backup, error.message)
        finally:
            await asyncio.shield(blocking(shutil.rmtree, place, True))
        result.report.bytes = result.bytes

    async def forget(self, request: ForgetBackups, tell: Tell) -> None:
        """:class:`ForgetBackups`."""
        engine = await self._repositories.engine(request.repository)
        lock = self._repositories.lock(request.repository)
        ids = [backup.status.engine_id for backup in request.backups if backup.status.engine_id]
        tell("forget", 0, len(ids), "backups")
        async with lock.with_others():
            await engine.forget(ids)
        if request.prune:
            tell("prune", 0, 0, "")
            async with lock.alone():
                await engine.prune()


def _fresh(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700, parents=True)


def _digest(path: Path) -> tuple[str, int]:
    try:
        data = path.read_bytes()
    except OSError:
        return "", 0
    return sha256(data).hexdigest(), len(data)
