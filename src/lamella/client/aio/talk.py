"""Asking one daemon about one project: calls in, answers out."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

from lamella.client import calls, routes
from lamella.client.aio.wire import Wire
from lamella.client.call import Call
from lamella.client.lines import EventReader
from lamella.model.operation import Operation, OperationPhase, OperationStatus

AnswerT = TypeVar("AnswerT")
Progress = Callable[[OperationStatus], None]


class Talk:
    """``wire`` and the ``project`` that is meant."""

    def __init__(self, wire: Wire, project: str) -> None:
        self.wire = wire
        self.project = project

    async def ask(self, call: Call[AnswerT]) -> AnswerT:
        """:raise LamellaError: what the daemon said was wrong, or that it is not there."""
        return call.read(await self.wire.exchange(call.request))

    async def find(self, kind: str, labels: Mapping[str, str] | None = None) -> tuple[list[Any], int]:
        """All of *kind*, and the revision at which a watch goes on."""
        found: list[Any] = []
        page = await self.ask(calls.find(self.project, kind, labels, ""))
        revision = page.revision
        while True:
            found += page.items
            if not page.cursor:
                return found, revision
            page = await self.ask(calls.find(self.project, kind, labels, page.cursor))

    async def watch(self, kind: str, since: int | None) -> AsyncIterator[calls.Change[Any]]:
        """What happens to *kind* after revision *since* (left out: from now on)."""
        reader = EventReader()
        async with self.wire.stream(routes.watch(self.project, kind, since=since)) as pieces:
            async for data in pieces:
                for event in reader.feed(data):
                    yield calls.change(kind, event)

    async def follow(self, operation: Operation, progress: Progress | None) -> Operation:
        """*operation* at its end; *progress* is called with where it stands, each time that changes."""
        if progress is not None:
            progress(operation.status)
        if operation.status.phase is OperationPhase.RUNNING:
            async for change in self.watch("operation", operation.revision):
                if change.resource.id == operation.id:
                    operation = change.resource
                    if progress is not None:
                        progress(operation.status)
                    if operation.status.phase is not OperationPhase.RUNNING:
                        break
        return operation
