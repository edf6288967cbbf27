"""One agent's port of a running VM: a conversation that is begun again whenever it ended, without asking the guest anything in between.

QEMU's socket takes a connection at any time and reads from it only while the guest has the port open, so a greeting lies there until
an agent comes: waiting costs a look every two seconds at most. A guest that reboots does not close the socket; who uses the
conversation finds out by asking (:meth:`Port.alive`), or is told by QEMU (:meth:`Port.dropped`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from lamella.host.compute.guest.socket import connect_socket
from lamella.model.errors import Corrupt, DeadlineExceeded, LamellaError

logger = logging.getLogger(__name__)

_ATTEMPT = 60.0
_PAUSE = 1.0
_LONG_PAUSE = 30.0
_FRESH = 2.0
_ANSWER = 10.0


class Conversation(Protocol):
    @property
    def closed(self) -> asyncio.Event: ...

    async def close(self) -> None: ...


Client = TypeVar("Client", bound=Conversation)
Open = Callable[[asyncio.StreamReader, asyncio.StreamWriter, float], Awaitable[Client]]


class Port(Generic[Client]):
    """Talks from :meth:`open` to :meth:`close`. *begin* begins a conversation over a connected socket, *ask* is its cheapest question.

    ``met`` says whether anybody has ever answered, ``lost`` is when the last conversation ended (the event loop's time); *moved* is called
    when somebody begins or stops to answer.
    """

    def __init__(
        self, path: Path, begin: Open[Client], ask: Callable[[Client], Awaitable[object]], moved: Callable[[], None]
    ) -> None:
        self.met = False
        self.lost: float | None = None
        self._path = path
        self._begin = begin
        self._ask = ask
        self._moved = moved
        self._client: Client | None = None
        self._answered = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def client(self) -> Client | None:
        """The conversation, when there is one. It may be one that the guest has forgotten."""
        return None if self._client is None or self._client.closed.is_set() else self._client

    def open(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name=f"port {self._path.name}")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def alive(self) -> Client | None:
        """The conversation, when the guest has answered within the last two seconds or answers now; else it is begun anew."""
        client = self.client
        now = asyncio.get_running_loop().time
        if client is None or now() - self._answered < _FRESH:
            return client
        try:
            async with asyncio.timeout(_ANSWER):
                await self._ask(client)
        except (LamellaError, TimeoutError) as error:
            logger.debug("%s: %s", self._path, error or "no answer")
            await client.close()
            return None
        self._answered = now()
        return client

    async def dropped(self) -> None:
        """QEMU says that the guest closed the port: whoever answered is gone."""
        if self._client is not None:
            await self._client.close()

    async def _keep(self) -> None:
        while True:
            pause = _PAUSE
            try:
                await self._converse()
            except Corrupt as error:
                logger.warning("%s: %s", self._path, error)
                pause = _LONG_PAUSE
            except DeadlineExceeded:
                pause = 0.0  # nobody has come; a fresh greeting is as cheap as an old one
            except (LamellaError, OSError) as error:
                logger.debug("%s: %s", self._path, error)
            await asyncio.sleep(pause)

    async def _converse(self) -> None:
        reader, writer = await connect_socket(self._path)
        client = await self._begin(reader, writer, _ATTEMPT)
        try:
            self._client, self.met = client, True
            self._answered = asyncio.get_running_loop().time()
            self._moved()
            await client.closed.wait()
        finally:
            self._client = None
            self.lost = asyncio.get_running_loop().time()
            await client.close()
            self._moved()
