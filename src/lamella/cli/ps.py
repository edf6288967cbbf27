"""``ps`` and ``show``: which instances there are."""

from lamella.cli import output, when
from lamella.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

_OVER = frozenset({"stopped", "failed"})


def status(instance: "Document") -> str:
    """Phase, and how long: ``running 5m``, ``stopped (7) 2h``."""
    phase = instance.text("status", "phase")
    if phase == "running":
        return f"running {when.since(instance.text('status', 'started_at'))}".rstrip()
    if phase == "pending" and instance.text("spec", "power") == "stopped":
        return "created"
    code = instance.integer("status", "exit_code")
    if phase in _OVER and code is not None:
        return f"{phase} ({code}) {when.since(instance.text('status', 'finished_at'))}".rstrip()
    return phase


def ports(instance: "Document") -> str:
    """Published ports as docker writes them: ``0.0.0.0:8080->80/tcp``."""
    return ", ".join(
        f"{port.text('host_address') or '0.0.0.0'}:{port.integer('host_port') or 0}"
        f"->{port.integer('port') or 0}/{port.text('protocol') or 'tcp'}"
        for port in instance.each("status", "published")
    )


COLUMNS: "list[Column]" = [
    ("NAME", lambda item: item.text("name")),
    ("STATUS", status),
    ("ISOLATION", lambda item: item.text("spec", "isolation")),
    ("IMAGE", lambda item: item.text("spec", "image")),
    ("ADDRESS", lambda item: item.text("status", "address").partition("/")[0]),
    ("PORTS", ports),
    ("CREATED", lambda item: when.since(item.text("created_at"))),
]


def labels(texts: "list[str]") -> dict[str, str]:
    """Labels from ``label=KEY=VALUE``, the filters of ``status=PHASE`` left out.

    :raise Invalid: when one is neither.
    """
    found: dict[str, str] = {}
    for text in texts:
        if text.startswith("status="):
            continue
        key, equals, value = text.removeprefix("label=").partition("=")
        if not text.startswith("label=") or not key or not equals:
            from lamella.model.errors import Invalid

            raise Invalid(
                f"{text!r} is not a filter",
                hint="write it like --filter label=tier=front or --filter status=running",
                field="filter",
            )
        found[key] = value
    return found


def _ps_options(parser: "Parser") -> None:
    parser.option(
        "-a", "--all", action="store_true", help="those that have ended too, and those that wait for a template"
    )
    parser.option("-q", "--quiet", action="store_true", help="names only")
    parser.option(
        "--filter",
        action="append",
        default=[],
        metavar="WHAT",
        help="only what bears label=KEY=VALUE, or is in status=PHASE",
    )
    parser.output()


def _ps(options: "Options") -> int:
    everything, _ = Session(options).find("instance", labels(options.filter))
    phases = {text.removeprefix("status=") for text in options.filter if text.startswith("status=")}
    shown = [
        item
        for item in everything
        if (item.text("status", "phase") in phases if phases else options.all or not (_over(item) or _waits(item)))
    ]
    shown.sort(key=lambda item: item.text("created_at"), reverse=True)
    output.show(shown, "name" if options.quiet else options.output, COLUMNS)
    return 0


def _over(instance: "Document") -> bool:
    return instance.text("status", "phase") in _OVER


def _waits(instance: "Document") -> bool:
    """Whether it is a template's: its builder, or a copy that waits for a command."""
    return instance.text("spec", "power") == "ready"


def _show_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+")
    parser.output()


def _show(options: "Options") -> int:
    session = Session(options)
    found = [session.get("instance", name) for name in options.name]
    if options.output == "table":
        for index, item in enumerate(found):
            if index:
                output.line()
            for text in outline(item):
                output.line(text)
    else:
        output.show(found, options.output, COLUMNS, one=len(found) == 1)
    return 0


def outline(document: "Document", depth: int = 0) -> list[str]:
    """*document* as indented lines; what is empty is left out."""
    lines: list[str] = []
    for name, member in document.pairs():
        lines += _member(name, member, depth)
    return lines


def _member(name: str, member: "Document", depth: int) -> list[str]:
    from lamella.cli.document import Document

    pad = "  " * depth
    label = output.clean(name)
    if isinstance(member.value, dict):
        inner = outline(member, depth + 1)
        return [f"{pad}{label}:", *inner] if inner else []
    if isinstance(member.value, list):
        items = list(member.each())
        if not items:
            return []
        if all(not isinstance(item.value, (dict, list)) for item in items):
            return [f"{pad}{label}: {', '.join(_scalar(name, item) for item in items)}"]
        lines = [f"{pad}{label}:"]
        for item in items:
            inner = (
                outline(item, depth + 2)
                if isinstance(item.value, dict)
                else _member("", Document(item.value), depth + 2)
            )
            if inner:
                lines += [f"{pad}  - {inner[0].lstrip()}", *inner[1:]]
        return lines
    return [] if member.value in (None, "") else [f"{pad}{label}: {_scalar(name, member)}"]


_SIZES = frozenset(
    {"memory", "disk", "size", "stored", "launched_memory", "capacity", "free", "used", "alone", "together", "merged"}
)
_CORES = frozenset({"cpu", "launched_cpu"})


def _scalar(name: str, member: "Document") -> str:
    from lamella.model.quantity import format_cpu, format_size

    number = member.integer()
    if number is not None and name in _SIZES:
        return format_size(number)
    if number is not None and name in _CORES:
        return format_cpu(number)
    if isinstance(member.value, bool):
        return "yes" if member.value else "no"
    return output.clean(str(member.value))


COMMANDS: "dict[str, Command]" = {"ps": (_ps_options, _ps), "show": (_show_options, _show)}
