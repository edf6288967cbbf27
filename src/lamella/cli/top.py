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
    from collections.abc import Callable

    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

_MOMENT = 0.5


def _options(parser: "Parser") -> None:
    parser.positional("name", nargs="*", help="only these instances")
    parser.option("--once", action="store_true", help="print once, as when standard output is no terminal")
    parser.option("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks (2)")
    parser.output()


def share(before: Document, after: Document, name: str = "cpu_seconds") -> "float | None":
    """By how much the seconds called *name* grew in a second between two looks (of ``cpu_seconds``: the cores that were used); ``None``
    when that cannot be told."""
    first, last = when.parse(before.text("at")), when.parse(after.text("at"))
    used, now = before.number(name), after.number(name)
    if first is None or last is None or used is None or now is None or now < used:
        return None
    seconds = (last - first).total_seconds()
    return (now - used) / seconds if seconds > 0 else None


def stolen(wait: "float | None", throttle: "float | None") -> "float | None":
    """For how much of the time something waited for a processor that others, or its own threads, had: all its waiting, less that
    for its own ceiling."""
    return None if wait is None else max(0.0, wait - (throttle or 0.0))


def _size(item: Document, name: str) -> str:
    from lamella.model.quantity import format_size

    number = item.integer(name)
    return "-" if number is None else format_size(number)


def _part(name: str) -> "Callable[[Document], str]":
    def shown(item: Document) -> str:
        part = item.number(name)
        return "-" if part is None else f"{part:.0%}"

    return shown


# What is shown as a share of the time, by what of a usage it is a share of.
SHARES = {
    "cpu": "cpu_seconds",
    "wait": "cpu_waited",
    "throttle": "throttled",
    "memory_wait": "memory_waited",
    "io_wait": "io_waited",
}

COLUMNS: "list[Column]" = [
    ("NAME", lambda item: item.text("name")),
    ("CPU", _part("cpu")),
    ("STEAL", _part("steal")),
    ("THROTTLED", _part("throttle")),
    ("MEM-WAIT", _part("memory_wait")),
    ("IO-WAIT", _part("io_wait")),
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
        shares = {key: share(before[name], usage, of) if name in before else None for key, of in SHARES.items()}
        members = {key: member.value for key, member in usage.pairs()}
        made.append(Document({"name": name, **shares, "steal": stolen(shares["wait"], shares["throttle"]), **members}))
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
