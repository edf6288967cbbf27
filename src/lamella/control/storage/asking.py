"""Asking a host's storage: requests out, lines of progress in, the result typed."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec

from lamella.model.assignment import HostAgent
from lamella.model.errors import Internal, Unavailable, error_for
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress

Tell = Callable[[StorageProgress], Awaitable[None]]


class Lost(Unavailable):
    """No answer came, because the host is away or went away: whether it was done, it knows when it is asked again."""


async def unheard(line: StorageProgress) -> None:
    """For who does not want to know how far it is."""


async def ask(agent: HostAgent, request: AnyStorageRequest, result: Any, tell: Tell = unheard) -> Any:
    """What *agent* answers to *request*, as a *result*; each line of progress goes to *tell*.

    :raise LamellaError: what the host said was wrong. :raise Lost: when it said nothing.
    """
    answer: bytes | None = None
    async for line in _lines(agent, request):
        if line.error_code:
            raise error_for(line.error_code)(line.error, hint=line.hint)
        if bytes(line.result):
            answer = bytes(line.result)
        else:
            await tell(line)
    if answer is None:
        raise Internal(f"the host ended {type(request).__name__} without a result")
    try:
        return msgspec.json.decode(answer, type=result)
    except msgspec.MsgspecError as error:
        raise Internal(f"the host's result of {type(request).__name__} is not understood: {error}") from error


async def _lines(agent: HostAgent, request: AnyStorageRequest) -> AsyncGenerator[StorageProgress]:
    try:
        async for line in agent.storage(request):
            yield line
    except Unavailable as error:
        raise Lost(error.message, hint=error.hint) from error


class Hosts:
    """The hosts that control can ask, by id. ``away`` says why one cannot be asked now, when it cannot."""

    def __init__(self, away: Callable[[str], str]) -> None:
        self._away = away
        self._agents: dict[str, HostAgent] = {}
        self._joined = asyncio.Event()

    def join(self, host: str, agent: HostAgent) -> None:
        self._agents[host] = agent
        self._joined.set()
        self._joined = asyncio.Event()

    def agent(self, host: str | None) -> HostAgent:
        """:raise Lost: when it cannot be asked; the sentence says why."""
        if why := self._away(host or ""):
            raise Lost(f"the host of it is away: {why}", hint="`lamella host ls` tells when it is back")
        agent = self._agents.get(host or "")
        if agent is None:
            raise Lost("the host of it is not connected", hint="lamella host ls tells which hosts are")
        return agent

    async def reach(self, host: str | None, *, patience: float) -> HostAgent:
        """As :meth:`agent`, but wait up to *patience* seconds for it to join.

        :raise Lost: when it did not.
        """
        try:
            async with asyncio.timeout(patience):
                while (host or "") not in self._agents:
                    await self._joined.wait()
        except TimeoutError:
            pass
        return self.agent(host)

    @property
    def present(self) -> dict[str, HostAgent]:
        """Those that can be asked now."""
        return {id: agent for id, agent in self._agents.items() if not self._away(id)}
