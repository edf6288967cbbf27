"""``snapshot``: what volumes were at an instant."""

from lamella.cli import output, when
from lamella.cli.document import render
from lamella.cli.each import each
from lamella.cli.image import follow
from lamella.cli.nouns import NAME, PHASE, show
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes, storage_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser


def _size(item: "Document") -> str:
    from lamella.model.quantity import format_size

    sizes = [bytes.value for _, bytes in item.pairs("status", "sizes")]
    return format_size(sum(size for size in sizes if isinstance(size, int))) if sizes else ""


def _memory(item: "Document") -> str:
    from lamella.model.quantity import format_size

    kept = item.integer("status", "memory")
    return format_size(kept) if kept else ""


COLUMNS: "list[Column]" = [
    NAME,
    PHASE,
    ("OF", lambda item: "instance" if item.text("spec", "instance") else "volume"),
    ("CONSISTENT", lambda item: item.text("status", "consistency")),
    ("SIZE", _size),
    ("MEMORY", _memory),
    ("PAUSE", lambda item: f"{(item.number('status', 'pause') or 0) * 1000:.1f}ms"),
    ("TAKEN", lambda item: when.since(item.text("status", "taken_at")) if item.text("status", "taken_at") else ""),
]


def _ls_options(parser: "Parser") -> None:
    parser.positional("of", nargs="?", help="only those of this volume or instance")
    parser.option("-a", "--all", action="store_true", help="those that clones of volumes stand on, too")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="only what bears the label")
    parser.option("-q", "--quiet", action="store_true", help="names only")
    parser.output()


def _ls(options: "Options") -> int:
    from lamella.cli.spec import labels

    found, _ = Session(options).find("snapshot", labels(options.label))
    found = [item for item in found if options.all or not item.text("spec", "owner")]
    if options.of is not None:
        found = [item for item in found if item.text("name").partition("@")[0] == options.of]
    output.show(found, "name" if options.quiet else options.output, COLUMNS)
    return 0


def _show_options(parser: "Parser") -> None:
    parser.positional("name", help="VOLUME@NAME, or its id")
    parser.output()


def _create_options(parser: "Parser") -> None:
    parser.positional("of", metavar="volume", help="the volume; with --instance the instance")
    parser.positional("name", help="what the snapshot will be called: VOLUME@NAME")
    parser.option("--instance", action="store_true", help="of all volumes of an instance, at one instant")
    parser.option("--consistent", action="store_true", help="freeze the guest's filesystems meanwhile")
    parser.option("--memory", action="store_true", help="of a running instance, with its memory")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels

    asked: dict[str, object] = {
        "name": options.name,
        "instance" if options.instance or options.memory else "volume": options.of,
        "consistent": options.consistent,
        "memory": options.memory,
        "labels": labels(options.label),
    }
    session = Session(options)
    with Progress(f"taking a snapshot of {clean(options.of)}"):
        made = session.ask(storage_routes.create(session.project, "snapshot", render(asked)))
    line(clean(made.text("name")))
    return 0


def _restore_options(parser: "Parser") -> None:
    parser.positional(
        "name", help="VOLUME@NAME: its volumes become what they were, and its instance goes on from its memory"
    )
    parser.option("--disks", action="store_true", help="its disks alone, without the memory that it holds")
    parser.option(
        "--start", action="store_true", help="start the instance (default: when there is a memory to go on from)"
    )
    parser.option(
        "--no-start", action="store_true", help="leave it stopped; it goes on from the memory when it is started"
    )
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _restore(options: "Options") -> int:
    if options.start and options.no_start:
        from lamella.model.errors import Invalid

        raise Invalid("--start and --no-start contradict each other", hint="leave one out", field="start")
    asked: dict[str, object] = {"memory": not options.disks}
    if options.start or options.no_start:
        asked["start"] = bool(options.start)
    session = Session(options)
    operation = session.ask(
        storage_routes.verb(session.project, "snapshot", options.name, "restore", render(asked), wait=None)
    )
    line(clean(follow(session, operation, f"restoring {clean(options.name)}", quiet=options.quiet)))
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="VOLUME@NAME")


def _rm(options: "Options") -> int:
    return each(
        options,
        "merging away",
        lambda session, name: session.ask(routes.remove(session.project, "snapshot", name, wait=storage_routes.SETTLE)),
    )


COMMANDS: "dict[str, Command]" = {
    "snapshot ls": (_ls_options, _ls),
    "snapshot show": (_show_options, show("snapshot", COLUMNS)),
    "snapshot create": (_create_options, _create),
    "snapshot restore": (_restore_options, _restore),
    "snapshot rm": (_rm_options, _rm),
}
