"""The file verbs of a level whose instances have somebody inside to ask: the same for all of them, but for how that one is reached."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from lamella.host.compute.driver import FileInfo


class Files(Protocol):
    """Somebody inside. What each verb raises is told at :class:`~lamella.host.compute.guest.client.GuestClient`."""

    async def stat(self, path: str) -> FileInfo: ...

    async def list_directory(self, path: str) -> list[FileInfo]: ...

    def read_file(self, path: str) -> AsyncIterator[bytes]: ...

    async def write_file(
        self, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None: ...

    async def make_directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None: ...


class FileVerbs:
    """Those of :class:`~lamella.host.compute.driver.ComputeDriver`."""

    def _files(self, id: str) -> AbstractAsyncContextManager[Files]:
        """Whom to ask in the instance *id*, for as long as it is held.

        :raise Conflict: when nobody can answer now.
        """
        raise NotImplementedError

    async def stat(self, id: str, path: str) -> FileInfo:
        async with self._files(id) as inside:
            return await inside.stat(path)

    async def list_directory(self, id: str, path: str) -> list[FileInfo]:
        async with self._files(id) as inside:
            return await inside.list_directory(path)

    async def read_file(self, id: str, path: str) -> AsyncIterator[bytes]:
        async with self._files(id) as inside:
            async for piece in inside.read_file(path):
                yield piece

    async def write_file(
        self, id: str, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        async with self._files(id) as inside:
            await inside.write_file(path, data, mode=mode, uid=uid, gid=gid)

    async def make_directory(self, id: str, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        async with self._files(id) as inside:
            await inside.make_directory(path, mode=mode, uid=uid, gid=gid)
