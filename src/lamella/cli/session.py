"""A command's talk with the daemon: requests of ``lamella.client.routes``, answers as documents."""

from lamella.cli.document import Document, parse
from lamella.client import address, routes
from lamella.client.blocking.wire import Wire
from lamella.client.lines import EventReader
from lamella.client.problem import problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lamella.cli.parser import Options
    from lamella.client.request import Request


# What is in project default, whatever the project (``lamella.model.kinds.SHARED``, which costs an import of msgspec).
SHARED = frozenset({"project", "host", "pool"})


class Session:
    """One daemon, one project."""

    def __init__(self, options: "Options") -> None:
        self.project: str = options.project
        self.wire = Wire(address.find(options.host))

    def ask(self, request: "Request") -> Document:
        """The answer to *request* (an empty document for 204).

        :raise LamellaError: what the daemon said was wrong.
        """
        reply = self.wire.exchange(request)
        return parse(reply.body) if reply.body else Document(None)

    def get(self, kind: str, name: str) -> Document:
        return self.ask(routes.get(self._home(kind), kind, name))

    def _home(self, kind: str) -> str:
        """The project that *kind* is in: some belong to the whole layer."""
        return "default" if kind in SHARED else self.project

    def find(self, kind: str, labels: "Mapping[str, str] | None" = None) -> "tuple[list[Document], int]":
        """All of *kind*, page after page, and the revision at which a watch goes on."""
        found: list[Document] = []
        cursor, revision = "", None
        while True:
            page = self.ask(routes.find(self._home(kind), kind, labels=labels, cursor=cursor))
            found.extend(page.each("items"))
            revision = revision or page.integer("revision") or 0
            cursor = page.text("cursor")
            if not cursor:
                return found, revision

    def watch(self, kind: str, since: int) -> "Iterator[tuple[str, Document]]":
        """What happens to *kind* after revision *since*: ``created``, ``updated`` or ``deleted``, and the resource."""
        reader = EventReader()
        with self.wire.stream(routes.watch(self.project, kind, since=since)) as stream:
            for data in stream:
                for event in reader.feed(data):
                    if event.event == "problem":
                        raise problem(500, event.data)
                    yield event.event, parse(event.data)
