"""``replication``: volumes that are kept in a second pool, too."""

from lamella.cli import output, when
from lamella.cli.document import Document, render
from lamella.cli.nouns import CREATED, NAME, PHASE, listed_options, shown_options
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.ps import outline
from lamella.cli.session import Session
from lamella.client import routes, storage_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Act, Command, Options, Parser


def seconds(value: "float | None") -> str:
    """A number of seconds, as short as it can be said; empty when there is none."""
    if value is None:
        return ""
    return f"{value:.2g}s" if value < 10 else f"{value:.0f}s"


def rpo(item: Document) -> str:
    """How old the newest whole copy is now."""
    if item.text("status", "phase") == "promoted":
        return ""
    age = when.age(item.text("status", "last"))
    return seconds(age if age is not None else item.number("status", "rpo"))


def worst(item: Document) -> str:
    """How old it was at most in the last day."""
    return seconds(item.number("status", "worst"))


COLUMNS: "list[Column]" = [
    NAME,
    PHASE,
    ("MODE", lambda item: item.text("spec", "mode")),
    ("VOLUME", lambda item: item.text("spec", "volume")),
    ("REPLICA", lambda item: item.text("spec", "target")),
    ("POOL", lambda item: item.text("spec", "pool")),
    ("EVERY", lambda item: seconds(item.number("spec", "every")) if item.text("spec", "mode") == "async" else ""),
    ("RPO", rpo),
    ("WORST", worst),
    ("CYCLES", lambda item: str(item.integer("status", "cycles") or 0)),
    CREATED,
]


def _named(session: Session, found: "list[Document]") -> "list[Document]":
    """*found* with the names of their volumes in place of ids."""
    if not found:
        return found
    names = {item.text("id"): item.text("name") for item in session.find("volume")[0]}
    made: list[Document] = []
    for item in found:
        spec: dict[str, object] = {name: part.value for name, part in item.pairs("spec")}
        for part in ("volume", "target"):
            spec[part] = names.get(item.text("spec", part), item.text("spec", part))
        made.append(Document({**{name: part.value for name, part in item.pairs()}, "spec": spec}))
    return made


def _ls(options: "Options") -> int:
    from lamella.cli.spec import labels

    session = Session(options)
    found, _ = session.find("replication", labels(options.label))
    form = "name" if options.quiet else options.output
    output.show(_named(session, found) if form == "table" else found, form, COLUMNS)
    return 0


def _show(options: "Options") -> int:
    session = Session(options)
    found = session.get("replication", options.name)
    if options.output == "table":
        for text in outline(_named(session, [found])[0]):
            line(text)
    else:
        output.show([found], options.output, COLUMNS, one=True)
    return 0


def _create_options(parser: "Parser") -> None:
    parser.positional("volume", help="the volume")
    parser.option("--to", metavar="pool:POOL", required=True, help="where the replica lies")
    parser.option(
        "--mode", choices=("async", "sync"), default="async", help="sync: both have a write before it is done"
    )
    parser.option("--every", metavar="TIME", default="60s", help="async: how often what changed is copied (60s)")
    parser.option("-n", "--name", help="what it will be called (default: as the volume)")
    parser.option("--target", metavar="NAME", help="what the replica will be called (default: VOLUME-replica)")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels
    from lamella.model.errors import Invalid
    from lamella.model.quantity import parse_duration

    kind, colon, pool = options.to.partition(":")
    if not colon or kind != "pool" or not pool:
        raise Invalid(f"{options.to!r} is no place for a replica", hint="--to pool:NAME", field="to")
    asked: dict[str, object] = {
        "volume": options.volume,
        "pool": pool,
        "mode": options.mode,
        "every": parse_duration(options.every, field="every"),
        "name": options.name or "",
        "target": options.target or "",
        "labels": labels(options.label),
    }
    session = Session(options)
    with Progress(f"replicating {clean(options.volume)}"):
        made = session.ask(storage_routes.create(session.project, "replication", render(asked)))
    line(clean(made.text("name")))
    return 0


def _name_options(parser: "Parser") -> None:
    parser.positional("name", help="the replication, or its volume")


def _verb(verb: str) -> "Act":
    def act(options: "Options") -> int:
        session = Session(options)
        made = session.ask(storage_routes.verb(session.project, "replication", options.name, verb))
        line(clean(made.text("name")))
        return 0

    return act


def _promote_options(parser: "Parser") -> None:
    _name_options(parser)
    parser.option("--force", action="store_true", help="even when writes that were acknowledged are lost")


def _promote(options: "Options") -> int:
    session = Session(options)
    with Progress(f"promoting the replica of {clean(options.name)}"):
        asked = render({"force": options.force})
        made = session.ask(storage_routes.verb(session.project, "replication", options.name, "promote", asked))
    # What is used from now on.
    line(clean(_named(session, [made])[0].text("spec", "target")))
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of replications; a replica that was not promoted goes with them")


def _rm(options: "Options") -> int:
    session = Session(options)
    for name in options.name:
        with Progress(f"ending replication {clean(name)}"):
            session.ask(routes.remove(session.project, "replication", name, wait=storage_routes.SETTLE))
        line(clean(name))
    return 0


COMMANDS: "dict[str, Command]" = {
    "replication ls": (listed_options, _ls),
    "replication show": (shown_options, _show),
    "replication create": (_create_options, _create),
    "replication pause": (_name_options, _verb("pause")),
    "replication resume": (_name_options, _verb("resume")),
    "replication promote": (_promote_options, _promote),
    "replication rm": (_rm_options, _rm),
}
