"""``pool`` and ``fsck``: where volumes lie, and whether what lies there is what it should be."""

from lamella.cli.document import Document, render
from lamella.cli.each import each
from lamella.cli.image import follow
from lamella.cli.nouns import NAME, PHASE, both, size
from lamella.cli.output import clean, line, table
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes, storage_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]


def _free(item: Document) -> str:
    capacity, free = item.integer("status", "capacity"), item.integer("status", "free")
    return f"{100 * free // capacity}%" if capacity and free is not None else ""


COLUMNS: "list[Column]" = [
    NAME,
    PHASE,
    ("DRIVER", lambda item: item.text("spec", "driver")),
    ("CAPACITY", lambda item: size(item, "status", "capacity")),
    ("FREE", lambda item: size(item, "status", "free")),
    ("", _free),
    ("PATH", lambda item: item.text("spec", "path")),
]


def _features(item: Document) -> "list[str]":
    return [f"does by itself: {', '.join(sorted(part.string for part in item.each('status', 'features')))}"]


def _session(options: "Options") -> Session:
    """Pools are in project default, whatever was said."""
    session = Session(options)
    session.project = "default"
    return session


def _create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    parser.option(
        "--driver",
        default="directory",
        metavar="DRIVER",
        help="directory (default), btrfs, zfs, lvm, rbd, gluster, iscsi, nfs",
    )
    parser.option("--path", default="", metavar="PATH", help="where, in the driver's words: a directory, a Ceph pool …")
    parser.option("--option", action="append", default=[], metavar="KEY=VALUE", help="the driver's own (repeat)")
    parser.option("--warn-below", metavar="SHARE", help="warn when less than this is free: 10%% (default), 0.1")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def share(text: str) -> float:
    """``20%`` or ``0.2``. :raise Invalid: when *text* is no share."""
    from lamella.model.errors import Invalid

    try:
        part = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        part = -1
    if not 0 <= part <= 1:
        raise Invalid(f"{text!r} is no share", hint="write it like 10% or 0.1", field="warn-below")
    return part


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels

    spec: Json = {"driver": options.driver, "path": options.path, "options": labels(options.option)}
    if options.warn_below is not None:
        spec["warn_below"] = share(options.warn_below)
    session = _session(options)
    asked = render({"name": options.name, "labels": labels(options.label), "spec": spec})
    with Progress(f"opening pool {clean(options.name)}"):
        made = session.ask(storage_routes.create("default", "pool", asked))
    line(clean(made.text("name")))
    return 0


def _set_options(parser: "Parser") -> None:
    parser.positional("name", help="the pool")
    parser.option("--warn-below", required=True, metavar="SHARE", help="warn when less than this is free: 10%%, 0.1")


def _set(options: "Options") -> int:
    session = _session(options)
    asked = render({"spec": {"warn_below": share(options.warn_below)}})
    session.ask(routes.patch("default", "pool", options.name, asked))
    line(clean(options.name))
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of pools; what lies there stays")


def _rm(options: "Options") -> int:
    return each(
        options,
        "closing",
        lambda session, name: session.ask(routes.remove("default", "pool", name, wait=storage_routes.SETTLE)),
    )


def _scrub_options(parser: "Parser") -> None:
    parser.positional("name", help="the pool")
    parser.option("--no-repair", action="store_true", help="only say what is wrong")
    _report_options(parser)


def _report_options(parser: "Parser") -> None:
    parser.option("-q", "--quiet", action="store_true", help="no progress")
    parser.option("-o", "--output", choices=("table", "json", "yaml"), default="table", help="table, json or yaml")


def _scrub(options: "Options") -> int:
    session = _session(options)
    asked = render({"repair": not options.no_repair})
    operation = session.ask(storage_routes.verb("default", "pool", options.name, "scrub", asked, wait=None))
    return _report(session, operation, f"reading pool {clean(options.name)}", options)


def _fsck_options(parser: "Parser") -> None:
    parser.option("--repair", action="store_true", help="mend what can be mended")
    parser.option("--remove-orphans", action="store_true", help="remove what lies in pools and nobody knows")
    _report_options(parser)


def _fsck(options: "Options") -> int:
    session = _session(options)
    asked = render({"repair": options.repair, "remove_orphans": options.remove_orphans})
    return _report(session, session.ask(storage_routes.fsck(asked)), "checking volumes", options)


def _report(session: Session, operation: Document, what: str, options: "Options") -> int:
    """Follow *operation* and print what it found; 1 when something is not well."""
    from lamella.cli.output import structured
    from lamella.model.quantity import format_size

    follow(session, operation, what, quiet=options.quiet)
    found = Document(session.get("operation", operation.text("id")).at("status", "report"))
    findings = list(found.each("findings"))
    if options.output != "table":
        line(structured(found.value, options.output))
    else:
        rows = [
            (
                item.text("subject"),
                item.text("problem"),
                "mended" if item.flag("mended") else item.text("hint") or "not mended",
            )
            for item in findings
        ]
        for text in table(("WHAT", "PROBLEM", ""), rows) if rows else []:
            line(text)
        read = found.integer("bytes") or 0
        line(
            f"{found.integer('checked') or 0} volumes looked at"
            + (f", {format_size(read)} read" if read else "")
            + (f", {len(findings)} findings" if findings else ", nothing found")
        )
    return 1 if any(not item.flag("mended") for item in findings) else 0


COMMANDS: "dict[str, Command]" = {
    **both("pool", COLUMNS, _features),
    "pool create": (_create_options, _create),
    "pool set": (_set_options, _set),
    "pool scrub": (_scrub_options, _scrub),
    "pool rm": (_rm_options, _rm),
    "fsck": (_fsck_options, _fsck),
}
