"""``top``: what instances use, again and again on a terminal, once elsewhere."""

import os
import sys
import time

from lamella.cli import output, when
from lamella.cli.document import Document
from lamella.cli.output import line
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

_MOMENT = 0.5


def _options(parser: "Parser") -> None:
    parser.positional("name", nargs="*", help="only these instances")
    parser.option("--once", action="store_true", help="print once, as when standard output is no terminal")
    parser.option("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks (2)")
    parser.output()


def share(before: Document, after: Document) -> "float | None":
    """The cores that were used between two looks; ``None`` when that cannot be told."""
    first, last = when.parse(before.text("at")), when.parse(after.text("at"))
    used, now = before.number("cpu_seconds"), after.number("cpu_seconds")
    if first is None or last is None or used is None or now is None or now < used:
        return None
    seconds = (last - first).total_seconds()
    return (now - used) / seconds if seconds > 0 else None


def _size(item: Document, name: str) -> str:
    from lamella.model.quantity import format_size

    number = item.integer(name)
    return "-" if number is None else format_size(number)


def _cpu(item: Document) -> str:
    used = item.number("cpu")
    return "-" if used is None else f"{used:.0%}"


COLUMNS: "list[Column]" = [
    ("NAME", lambda item: item.text("name")),
    ("CPU", _cpu),
    ("MEMORY", lambda item: _size(item, "memory")),
    ("LIMIT", lambda item: _size(item, "memory_limit")),
    ("PROCESSES", lambda item: str(item.integer("processes") or "-")),
    ("DISK", lambda item: _size(item, "disk_used")),
    ("RECEIVED", lambda item: _size(item, "received")),
    ("SENT", lambda item: _size(item, "sent")),
]


def rows(before: dict[str, Document], after: dict[str, Document], names: "list[str]") -> list[Document]:
    """A document for each instance, busiest first."""
    made: list[Document] = []
    for name, usage in after.items():
        if names and name not in names:
            continue
        cores = share(before[name], usage) if name in before else None
        members = {key: member.value for key, member in usage.pairs()}
        made.append(Document({"name": name, "cpu": cores, **members}))
    return sorted(made, key=lambda item: (-(item.number("cpu") or 0), item.text("name")))


def _top(options: "Options") -> int:
    session = Session(options)

    def look() -> dict[str, Document]:
        return dict(session.ask(routes.usage(session.project)).pairs())

    once = options.once or options.output != "table" or not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
    before = look()
    time.sleep(_MOMENT)
    while True:
        after = look()
        shown = rows(before, after, options.name)
        if once:
            output.show(shown, options.output, COLUMNS)
            return 0
        cells = [[read(item) for _, read in COLUMNS] for item in shown]
        lines = output.table([heading for heading, _ in COLUMNS], cells)
        height = os.get_terminal_size(1).lines
        line("\x1b[H\x1b[2J" + "\n".join(lines[: height - 1]))
        sys.stdout.flush()
        before = after
        time.sleep(max(0.2, options.interval))


COMMANDS: "dict[str, Command]" = {"top": (_options, _top)}
