"""``replication``: volumes that are kept in a second pool, too."""

from lamella.cli.document import render
from lamella.cli.nouns import CREATED, NAME, PHASE, both
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes, storage_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Act, Command, Options, Parser


def seconds(item: "Document", *path: str) -> str:
    """A number of seconds, as short as it can be said; empty when there is none."""
    value = item.at(*path)
    return f"{value:.3g}s" if isinstance(value, (int, float)) else ""


COLUMNS: "list[Column]" = [
    NAME,
    PHASE,
    ("MODE", lambda item: item.text("spec", "mode")),
    ("POOL", lambda item: item.text("spec", "pool")),
    ("EVERY", lambda item: seconds(item, "spec", "every") if item.text("spec", "mode") == "async" else ""),
    ("RPO", lambda item: seconds(item, "status", "rpo")),
    ("WORST", lambda item: seconds(item, "status", "worst")),
    ("CYCLES", lambda item: str(item.integer("status", "cycles") or 0)),
    CREATED,
]


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
        session.ask(storage_routes.verb(session.project, "replication", options.name, "promote", asked))
    line(clean(options.name))
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
    **both("replication", COLUMNS),
    "replication create": (_create_options, _create),
    "replication pause": (_name_options, _verb("pause")),
    "replication resume": (_name_options, _verb("resume")),
    "replication promote": (_promote_options, _promote),
    "replication rm": (_rm_options, _rm),
}
