"""Repositories as this host goes to them: their keys unwrapped, their engines made, and who may work on one at a time.

Backups and restores share a repository; a check or a prune has it alone.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.storage.backup import recovery_key, sealed
from lamella.host.storage.backup.engine import Engine
from lamella.host.storage.backup.location import locate
from lamella.host.storage.backup.restic import Places, Restic
from lamella.host.storage.keys import KeyRing
from lamella.host.storage.requests import Tell
from lamella.model.backup import Credentials, Repository
from lamella.model.backup_requests import ListRepository, OpenRepository, RepositoryMade, Stored
from lamella.model.errors import Invalid
from lamella.model.storage import KeyWrap


class Shared:
    """Many share, or one has it alone; who waits to have it alone lets nobody else in."""

    def __init__(self) -> None:
        self._sharing = 0
        self._gate = asyncio.Lock()
        self._none = asyncio.Event()
        self._none.set()

    @asynccontextmanager
    async def with_others(self) -> AsyncGenerator[None]:
        async with self._gate:
            self._sharing += 1
            self._none.clear()
        try:
            yield
        finally:
            self._sharing -= 1
            if not self._sharing:
                self._none.set()

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[None]:
        async with self._gate:
            await self._none.wait()
            yield


class Repositories:
    """Answers OpenRepository and ListRepository."""

    def __init__(self, home: Home, keys: KeyRing) -> None:
        self._home, self._keys = home, keys
        self._locks: dict[str, Shared] = {}
        place = home.state / "backup"
        self.places = Places(cache=place / "cache", work=home.run / "backup" / "work", known=place / "servers")

    def lock(self, repository: Repository) -> Shared:
        return self._locks.setdefault(repository.id, Shared())

    async def engine(self, repository: Repository) -> Engine:
        """:raise Unavailable: when what keeps its key is not here. :raise Corrupt: when its key or credentials are not its own."""
        key = await self._keys.unwrap(repository.id, repository.status.key)
        return self._make(repository, key, sealed.unseal(repository.id, key, repository.status.credentials))

    def _make(self, repository: Repository, key: bytes, credentials: Credentials) -> Engine:
        return make_engine(self._home, self.places, repository, key, credentials)

    async def open(self, request: OpenRepository, tell: Tell) -> RepositoryMade:
        """:class:`OpenRepository`. Asked again for one that was made in vain to tell its key: it is known by its wrapped key."""
        repository, credentials = request.repository, request.credentials
        location = locate(repository.spec.url)
        if location.s3 and not (credentials.access_key and credentials.secret_key):
            raise Invalid(
                "an S3 repository needs a key pair",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                field="credentials",
            )
        if location.directory and Path(location.directory).is_relative_to(self._home.path):
            raise Invalid(
                "a repository in the layer's own home is lost together with it",
                hint="put it elsewhere",
                field="spec.url",
            )
        tell("open", 0, 0, "")
        if request.recovery_key:
            key = recovery_key.read(request.recovery_key)
            id = await self._make(repository, key, credentials).identify()
        else:
            key = os.urandom(recovery_key.KEY_BYTES)
            id = await self._make(repository, key, credentials).create()
        wrapped = await self._keys.wrap(repository.id, key, KeyWrap.KEY_FILE)
        return RepositoryMade(
            key=wrapped,
            credentials=sealed.seal(repository.id, key, credentials),
            engine_id=id,
            recovery_key=recovery_key.written(key),
        )

    async def stored(self, request: ListRepository, tell: Tell) -> list[Stored]:
        """:class:`ListRepository`."""
        tell("list", 0, 0, "")
        return await (await self.engine(request.repository)).stored()


def make_engine(home: Home, places: Places, repository: Repository, key: bytes, credentials: Credentials) -> Engine:
    """The engine of one repository."""
    return Restic(repository.id, locate(repository.spec.url), key, credentials, places, home.mark)
