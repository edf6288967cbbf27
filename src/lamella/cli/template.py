"""``template``: machines that are booted, warmed up and frozen once, and of which instances begin as copies."""

from lamella.cli import output, when
from lamella.cli.document import render
from lamella.cli.each import each
from lamella.cli.nouns import CREATED, NAME, PHASE, listed_options, ls, show, shown_options, size
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes, template_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]


def _warm(item: "Document") -> str:
    """How many wait of how many that may."""
    most = item.integer("spec", "warm") or 0
    return f"{item.integer('status', 'ready') or 0}/{most}" if most else ""


COLUMNS: "list[Column]" = [
    NAME,
    PHASE,
    ("IMAGE", lambda item: item.text("spec", "image")),
    ("ISOLATION", lambda item: item.text("spec", "isolation") or "microvm"),
    ("SIZE", lambda item: size(item, "status", "size")),
    ("WARM", _warm),
    ("COPIES", lambda item: str(item.integer("status", "copies") or 0)),
    ("BUILT", lambda item: when.since(item.text("status", "built_at")) if item.text("status", "built_at") else ""),
    CREATED,
]


def _options(parser: "Parser") -> None:
    parser.option("--warmup", metavar="COMMAND", help="what its shell runs in it once, as root, before it is frozen")
    parser.option("--cpu", metavar="CORES", help="of each copy: 2, 1.5 or 250m")
    parser.option("-m", "--memory", metavar="SIZE", help="of each copy: 512MiB")
    parser.option("--disk", metavar="SIZE", help="of each copy: 4GiB")
    parser.option("--pids", type=int, metavar="N", help="most processes at once in each copy (4096)")
    parser.option("--network", metavar="NAME", help="what its copies are on unless they say otherwise, or none")
    parser.option(
        "-e", "--env", action="append", default=[], metavar="KEY[=VALUE]", help="set a variable, or pass yours on"
    )
    parser.option("--warm", type=int, metavar="N", help="so many copies wait for their command")
    parser.option("--by-rate", action="store_true", help="as many as arrive while one is made; --warm is the most")
    parser.option("--no-by-rate", action="store_true", help="--warm copies, always")
    parser.option(
        "--idle", metavar="TIME", help="remove it when nobody has begun from it for so long: 1h; none: keep it"
    )


def _asked(options: "Options") -> "Json":
    """What was said of it, as fields of its spec. :raise Invalid: when something is not understood."""
    from lamella.cli.spec import variables
    from lamella.model.errors import Invalid
    from lamella.model.quantity import parse_cpu, parse_duration, parse_size

    found: Json = {
        name: getattr(options, name) for name in ("pids", "network", "warm") if getattr(options, name) is not None
    }
    if options.warmup is not None:
        found["warmup"] = ["/bin/sh", "-c", options.warmup] if options.warmup else []
    if options.cpu is not None:
        found["cpu"] = parse_cpu(options.cpu, field="cpu")
    for name in ("memory", "disk"):
        text = getattr(options, name)
        if text is not None:
            found[name] = parse_size(text, field=name)
    if options.env:
        found["environment"] = variables(options.env, [])
    if options.by_rate and options.no_by_rate:
        raise Invalid("--by-rate and --no-by-rate contradict each other", hint="leave one of them out", field="by-rate")
    if options.by_rate or options.no_by_rate:
        found["by_rate"] = options.by_rate
    if options.idle is not None:
        found["idle"] = None if options.idle == "none" else parse_duration(options.idle, field="idle")
    return found


def _create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    parser.option("--from", dest="image", metavar="IMAGE", help="the image that it is made from")
    parser.option("--isolation", default="microvm", metavar="LEVEL", help="of what is copied (default: microvm)")
    _options(parser)
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")
    parser.option("-d", "--detach", action="store_true", help="come back at once")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels
    from lamella.model.errors import Invalid

    if not options.image:
        raise Invalid("a template is made from an image", hint="say which: --from debian:12", field="from")
    asked: Json = {
        "name": options.name,
        "labels": labels(options.label),
        "spec": {"image": options.image, "isolation": options.isolation, **_asked(options)},
    }
    session = Session(options)
    wait = 0 if options.detach else template_routes.SETTLE
    with Progress(f"making template {clean(options.name)}", quiet=options.quiet):
        made = session.ask(template_routes.create(session.project, render(asked), wait=wait))
    line(clean(made.text("name")))
    return 0


def _set_options(parser: "Parser") -> None:
    parser.positional("name", help="the template; another recipe has it made anew")
    parser.option("--from", dest="image", metavar="IMAGE", help="another image")
    _options(parser)
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )
    parser.option("-d", "--detach", action="store_true", help="come back at once")


def _set(options: "Options") -> int:
    from lamella.cli.spec import label_changes
    from lamella.model.errors import Invalid

    spec = _asked(options)
    if options.image is not None:
        spec["image"] = options.image
    asked: Json = {"spec": spec} if spec else {}
    if options.label:
        asked["labels"] = label_changes(options.label)
    if not asked:
        raise Invalid("there is nothing to change", hint="say what: --warm 4, --memory 1GiB")
    session = Session(options)
    wait = None if options.detach else template_routes.SETTLE
    with Progress(f"changing template {clean(options.name)}"):
        session.ask(routes.patch(session.project, "template", options.name, render(asked), wait=wait))
    line(clean(options.name))
    return 0


def _names(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of templates")


def _rebuild(options: "Options") -> int:
    return each(
        options, "making anew", lambda session, name: session.ask(template_routes.rebuild(session.project, name))
    )


def _rm(options: "Options") -> int:
    return each(
        options, "removing", lambda session, name: session.ask(routes.remove(session.project, "template", name))
    )


def _trouble(item: "Document") -> list[str]:
    return [
        f"{output.clean(condition.text('type')).lower()}: {output.clean(condition.text('message'))}"
        for condition in item.each("status", "conditions")
        if not condition.flag("status")
    ]


COMMANDS: "dict[str, Command]" = {
    "template ls": (listed_options, ls("template", COLUMNS)),
    "template show": (shown_options, show("template", COLUMNS, _trouble)),
    "template create": (_create_options, _create),
    "template set": (_set_options, _set),
    "template rebuild": (_names, _rebuild),
    "template rm": (_names, _rm),
}
