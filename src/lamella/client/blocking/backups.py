"""Repositories, the backups in them, and what is backed up by itself."""

import builtins
from collections.abc import Mapping
from typing import Unpack

from lamella.client import backup_calls, calls, storage_calls
from lamella.client.backup_calls import Keeps
from lamella.client.blocking.talk import Progress, Talk
from lamella.model.backup import Backup, BackupPolicy, BackupSource, Credentials, Repository
from lamella.model.backup_bodies import BackupMounted, RepositoryCreated
from lamella.model.storage_report import Report


class Repositories:
    """``layer.repositories``. *progress* is called with where an operation stands, each time that changes."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self) -> builtins.list[Repository]:
        found, _ = self._talk.find("repository")
        return found

    def get(self, name: str) -> Repository:
        """:raise NotFound: when there is no such repository."""
        return self._talk.ask(calls.get(self._talk.project, "repository", name))

    def create(
        self, name: str, to: str, *, recovery_key: str = "", host: str = "", credentials: Credentials | None = None
    ) -> RepositoryCreated:
        """Make one at *to* (a directory of the host, ``s3://…``, ``sftp://…``), or with its *recovery_key* open one that is there. The
        answer alone has the recovery key.

        :raise Conflict: when there is one, and no key was given. :raise Forbidden: when the key is not its.
        """
        call = backup_calls.create_repository(
            self._talk.project, name, to, recovery_key=recovery_key, host=host, credentials=credentials
        )
        return self._talk.ask(call)

    def verify(
        self,
        name: str,
        backups: builtins.list[str] | None = None,
        *,
        full: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Check it, restore a sample of each of *backups* (left out: the newest of everything) and compare."""
        operation = self._talk.ask(backup_calls.verify(self._talk.project, name, backups or [], full=full))
        return storage_calls.report(self._talk.follow(operation, progress))

    def prune(self, name: str, *, progress: Progress | None = None) -> None:
        """Forget what no policy keeps, and give back the room of what nothing needs."""
        operation = self._talk.ask(backup_calls.prune(self._talk.project, name))
        storage_calls.ended(self._talk.follow(operation, progress))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Forget it; what lies there stays. :raise Conflict: when it has backups or policies, unless *force*."""
        self._talk.ask(calls.remove(self._talk.project, "repository", name, force=force))


class Backups:
    """``layer.backups``. A volume's name stands for its newest backup."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self, of: str | None = None, *, all: bool = False) -> builtins.list[Backup]:
        """Those of the volume or instance *of*, or all; with *all* the layer's state, too, that is kept beside each."""
        found, _ = self._talk.find("backup")
        mine = [item for item in found if of is None or of in (item.spec.volume_name, item.spec.instance)]
        return [item for item in mine if all or item.spec.of is not BackupSource.LAYER]

    def get(self, name: str) -> Backup:
        """:raise NotFound: when there is no such backup."""
        return self._talk.ask(calls.get(self._talk.project, "backup", name))

    def create(
        self,
        of: str,
        repository: str,
        *,
        instance: bool = False,
        name: str = "",
        consistent: bool = False,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> builtins.list[Backup]:
        """Of the volume *of*; with *instance* of an instance and all its volumes at one instant; of the layer when *of* is empty. With
        *consistent* the guest's filesystems are frozen meanwhile."""
        call = backup_calls.create(
            self._talk.project,
            repository,
            of,
            instance=instance,
            name=name,
            consistent=consistent,
            labels=labels or {},
        )
        operation = self._talk.follow(self._talk.ask(call), progress)
        return [self.get(made) for made in storage_calls.ended(operation).status.result.split()]

    def restore(
        self,
        name: str,
        new: str,
        *,
        instance: bool = False,
        pool: str = "",
        force: bool = False,
        passphrase: str = "",
        progress: Progress | None = None,
    ) -> str:
        """Into a new volume called *new*, with *force* over the one of that name, which is what it was until the new is whole; with
        *instance* into a new, stopped instance. Its name."""
        call = backup_calls.restore(
            self._talk.project, name, new, instance=instance, pool=pool, force=force, passphrase=passphrase
        )
        operation = self._talk.follow(self._talk.ask(call), progress)
        return storage_calls.ended(operation).status.result

    def mount(self, name: str) -> BackupMounted:
        """Its files in a directory of a host, read-only, until :meth:`unmount`."""
        return self._talk.ask(backup_calls.mount(self._talk.project, name))

    def unmount(self, name: str) -> None:
        self._talk.ask(backup_calls.unmount(self._talk.project, name))

    def remove(self, name: str) -> None:
        """:raise Conflict: while it is being made or is mounted."""
        self._talk.ask(calls.remove(self._talk.project, "backup", name))


class Policies:
    """``layer.policies``, called after their volumes; ``layer`` is that of the layer's own state."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self) -> builtins.list[BackupPolicy]:
        found, _ = self._talk.find("policy")
        return found

    def get(self, name: str) -> BackupPolicy:
        """:raise NotFound: when there is no such policy."""
        return self._talk.ask(calls.get(self._talk.project, "policy", name))

    def set(
        self,
        volume: str,
        repository: str,
        *,
        every: float | str | None = None,
        verify: float | str = "7d",
        **keep: Unpack[Keeps],
    ) -> BackupPolicy:
        """Back *volume* up by itself (empty: the layer's own state) *every* so many seconds (or ``"12h"``; left out: as often as *keep*
        asks for), and verify it now and then (0: never). What *keep* does not name is forgotten."""
        return self._talk.ask(backup_calls.put_policy(self._talk.project, volume, repository, every, verify, keep))

    def remove(self, name: str) -> None:
        """What was backed up by it stays."""
        self._talk.ask(calls.remove(self._talk.project, "policy", name))
