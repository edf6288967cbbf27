"""``host``, ``operation``, ``project``: ``ls`` and ``show`` of each, and what lists of other kinds are made with."""

from lamella.cli import output, when
from lamella.cli.ps import outline
from lamella.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Act, Command, Options, Parser

    More = Callable[[Document], list[str]]


def size(item: "Document", *path: str) -> str:
    """The bytes at *path* for a person; empty when there are none."""
    from lamella.model.quantity import format_size

    number = item.integer(*path)
    return format_size(number) if number else ""


def cores(item: "Document", *path: str) -> str:
    """The milli-cores at *path* as cores."""
    from lamella.model.quantity import format_cpu

    number = item.integer(*path)
    return format_cpu(number) if number else ""


def progress(item: "Document") -> str:
    """How far an operation is: ``57%``; empty when that is not known, or it has ended."""
    if item.text("status", "phase") != "running":
        return ""
    done, total = item.integer("status", "done"), item.integer("status", "total")
    return f"{min(100, 100 * done // total)}%" if done is not None and total else ""


NAME: "Column" = ("NAME", lambda item: item.text("name"))
CREATED: "Column" = ("CREATED", lambda item: when.since(item.text("created_at")))
PHASE: "Column" = ("STATUS", lambda item: item.text("status", "phase"))

COLUMNS: "dict[str, list[Column]]" = {
    "host": [
        NAME,
        PHASE,
        ("CPU", lambda item: cores(item, "status", "cpu")),
        ("MEMORY", lambda item: size(item, "status", "memory")),
        ("ARCHITECTURE", lambda item: item.text("status", "architecture")),
        ("KERNEL", lambda item: item.text("status", "kernel")),
    ],
    "operation": [
        ("ID", lambda item: item.text("id")),
        ("STATUS", lambda item: item.text("status", "phase")),
        ("VERB", lambda item: item.text("spec", "verb")),
        ("SUBJECT", lambda item: item.text("spec", "subject")),
        ("PROGRESS", progress),
        ("STEP", lambda item: item.text("status", "error") or item.text("status", "step")),
        CREATED,
    ],
    "project": [NAME, ("DESCRIPTION", lambda item: item.text("spec", "description")), CREATED],
}


def listed_options(parser: "Parser") -> None:
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="only what bears the label")
    parser.option("-q", "--quiet", action="store_true", help="names only")
    parser.output()


def ls(kind: str, columns: "list[Column]") -> "Act":
    """The command that lists *kind*."""

    def act(options: "Options") -> int:
        from lamella.cli.spec import labels

        found, _ = Session(options).find(kind, labels(options.label))
        output.show(found, "name" if options.quiet else options.output, columns)
        return 0

    return act


def shown_options(parser: "Parser") -> None:
    parser.positional("name", help="its name or id")
    parser.output()


def show(kind: str, columns: "list[Column]", more: "More | None" = None) -> "Act":
    """The command that shows one of *kind*; *more* gives lines that go below."""

    def act(options: "Options") -> int:
        found = Session(options).get(kind, options.name)
        if options.output == "table":
            for text in [*outline(found), *(more(found) if more else ())]:
                output.line(text)
        else:
            output.show([found], options.output, columns, one=True)
        return 0

    return act


def both(kind: str, columns: "list[Column]", more: "More | None" = None) -> "dict[str, Command]":
    """``KIND ls`` and ``KIND show``."""
    return {
        f"{kind} ls": (listed_options, ls(kind, columns)),
        f"{kind} show": (shown_options, show(kind, columns, more)),
    }


def _figures(host: "Document") -> list[str]:
    from lamella.cli.policy import figures

    return figures(host)


_MORE: "dict[str, More]" = {"host": _figures}
COMMANDS: "dict[str, Command]" = {
    name: command for kind, columns in COLUMNS.items() for name, command in both(kind, columns, _MORE.get(kind)).items()
}
