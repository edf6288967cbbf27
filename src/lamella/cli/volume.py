"""``volume``: disks and directory trees with a life of their own."""

import sys

from lamella.cli import output
from lamella.cli.document import Document, render
from lamella.cli.each import each
from lamella.cli.image import follow
from lamella.cli.nouns import CREATED, NAME, show, size
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes, storage_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]

LIMITS = ("iops", "bandwidth", "iops_burst", "bandwidth_burst")


def invalid(message: str, hint: str, field: str) -> Exception:
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint, field=field)


def used(item: Document, *path: str) -> str:
    """The bytes at *path*, none as ``0B``."""
    from lamella.model.quantity import format_size

    return format_size(item.integer(*path) or 0)


def limits(item: Document) -> str:
    """What bounds a volume, in a few words."""
    from lamella.model.quantity import format_rate

    spec = Document(item.at("spec", "limits"))
    iops, bandwidth, group = spec.integer("iops"), spec.integer("bandwidth"), spec.text("group")
    said = [f"{iops} iops" if iops else "", format_rate(bandwidth) if bandwidth else "", f"@{group}" if group else ""]
    return " ".join(part for part in said if part)


def standing(item: Document) -> str:
    """Its phase; of one that nobody may open, why: it is a ``replica``, or was ``replaced`` by one."""
    for condition in item.each("status", "conditions"):
        if condition.text("type") == "Usable" and not condition.flag("status"):
            return condition.text("reason")
    return item.text("status", "phase")


COLUMNS: "list[Column]" = [
    NAME,
    ("STATUS", standing),
    ("POOL", lambda item: item.text("spec", "pool")),
    (
        "FORM",
        lambda item: item.text("spec", "filesystem") or ("raw" if item.text("spec", "form") == "block" else "tree"),
    ),
    ("SIZE", lambda item: size(item, "status", "size") or size(item, "spec", "size")),
    ("USED", lambda item: used(item, "status", "used")),
    ("LIMITS", limits),
    ("KEY", lambda item: item.text("spec", "encryption")),
    ("ATTACHED", lambda item: item.text("attached")),
    CREATED,
]


def warn(item: Document) -> None:
    """What is not as it should be, on standard error."""
    for condition in item.each("status", "conditions"):
        if not condition.flag("status") and condition.text("message"):
            sys.stderr.write(f"lamella: warning: {clean(condition.text('message'))}\n")
            if condition.text("hint"):
                sys.stderr.write(f"  {clean(condition.text('hint'))}\n")


def _ls_options(parser: "Parser") -> None:
    parser.option("-a", "--all", action="store_true", help="instances' own disks, too")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="only what bears the label")
    parser.option("-q", "--quiet", action="store_true", help="names only")
    parser.output()


def _ls(options: "Options") -> int:
    from lamella.cli.spec import labels

    session = Session(options)
    found, _ = session.find("volume", labels(options.label))
    found = [item for item in found if options.all or not item.text("spec", "owner")]
    form = "name" if options.quiet else options.output
    if form == "table":
        found = _named(session, found)
    output.show(found, form, COLUMNS)
    return 0


def _named(session: Session, volumes: "list[Document]") -> "list[Document]":
    """*volumes* with the names of the instances that have them."""
    if not any(item.text("spec", "owner") or next(item.each("status", "attached"), None) for item in volumes):
        return volumes
    names = {item.text("id"): item.text("name") for item in session.find("instance")[0]}
    made: list[Document] = []
    for item in volumes:
        ids = [item.text("spec", "owner"), *(id.string for id in item.each("status", "attached"))]
        value: Json = {name: part.value for name, part in item.pairs()}
        made.append(Document({**value, "attached": ", ".join(names.get(id, id) for id in ids if id)}))
    return made


def _show_options(parser: "Parser") -> None:
    parser.positional("name", help="its name or id")
    parser.output()


def limit_options(parser: "Parser", *, none: bool = False) -> None:
    """Options for what bounds a volume; with *none* each can be taken away."""
    away = "; none takes it away" if none else ""
    parser.option("--iops", metavar="N", help=f"most operations a second{away}")
    parser.option("--bandwidth", metavar="RATE", help=f"most bytes a second: 100MiB/s{away}")
    parser.option("--iops-burst", metavar="N", help=f"more for a moment{away}")
    parser.option("--bandwidth-burst", metavar="RATE", help=f"more for a moment{away}")
    parser.option("--burst", metavar="TIME", help="how long a burst may last (1s)")
    parser.option("--group", metavar="NAME", help="share these limits with the volumes of that group")


def asked_limits(options: "Options") -> "Json":
    """The limits that *options* ask for. :raise Invalid: when one is no rate."""
    from lamella.model.quantity import parse_duration, parse_rate

    made: Json = {}
    for name in LIMITS:
        text = getattr(options, name)
        if text is not None:
            made[name] = None if text == "none" else parse_rate(text, field=name.replace("_", "-"))
    if options.burst is not None:
        made["burst_seconds"] = max(1, round(parse_duration(options.burst, field="burst")))
    if options.group is not None:
        made["group"] = "" if options.group == "none" else options.group
    return made


def key_options(parser: "Parser") -> None:
    """Options for what keeps the key."""
    parser.option("--encrypt", action="store_true", help="encrypted; a key file of the host keeps the key")
    parser.option("--tpm", action="store_true", help="encrypted; the host's TPM keeps the key")


def wrap(options: "Options", passphrase: bool) -> "str | None":
    """What keeps the key; ``None`` when nothing was said. :raise Invalid: when more than one is asked for."""
    said = [
        name
        for name, given in (("tpm", options.tpm), ("passphrase", passphrase), ("key-file", options.encrypt))
        if given
    ]
    if len(said) > 1 and said != ["passphrase", "key-file"]:
        raise invalid(f"the key cannot be kept by {' and by '.join(said)}", "choose one", "encrypt")
    return said[0] if said else None


def passphrase_of(path: "str | None") -> str:
    """The first line of the file *path*, of standard input for ``-``; empty for ``None``.

    :raise Invalid: when it is empty.
    """
    if path is None:
        return ""
    if path == "-":
        text = sys.stdin.readline()
    else:
        from lamella.cli.machine import read

        text = read(path)
    text = text.split("\n", 1)[0].rstrip("\r")
    if not text:
        raise invalid("the passphrase is empty", "write it into the first line of the file", "passphrase-file")
    return text


def _create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    parser.option("--pool", metavar="POOL", help="where it lies (default: default)")
    parser.option("--size", metavar="SIZE", help="20GiB; room is taken as it is written")
    parser.option("--from", dest="source", metavar="VOLUME[@SNAPSHOT]", help="begin as that one: a clone")
    parser.option("--raw", action="store_true", help="a disk without a filesystem (default: ext4)")
    parser.option("--form", choices=("block", "filesystem"), default="block", help="filesystem: a tree to be shared")
    parser.option("--shred", action="store_true", help="overwrite it before its room is given back")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")
    parser.section("performance")
    limit_options(parser)
    parser.section("encryption")
    key_options(parser)
    parser.option(
        "--passphrase-file", metavar="FILE", help="encrypted; this passphrase opens it (- reads it from stdin)"
    )
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def body(options: "Options") -> "Json":
    """The request that *options* are. :raise Invalid: when one is not understood."""
    from lamella.cli.spec import labels
    from lamella.model.quantity import parse_size

    spec: Json = {"form": options.form, "pool": options.pool}
    if options.size is not None:
        spec["size"] = parse_size(options.size)
    elif options.source is None and options.form == "block":
        raise invalid("a volume needs a size", f"lamella volume create {options.name} --size 20GiB", "size")
    if options.form == "block" and options.source is None and not options.raw:
        spec["filesystem"] = "ext4"
    passphrase = passphrase_of(options.passphrase_file)
    spec |= {"encryption": wrap(options, bool(passphrase)), "limits": asked_limits(options), "shred": options.shred}
    made: Json = {
        "name": options.name,
        "labels": labels(options.label),
        "spec": {name: value for name, value in spec.items() if value is not None and value not in ({}, False)},
    }
    if options.source is not None:
        made["source"] = options.source
    if passphrase:
        made["passphrase"] = passphrase
    return made


def _create(options: "Options") -> int:
    asked = render(body(options))
    session = Session(options)
    with Progress(f"making volume {clean(options.name)}", quiet=options.quiet):
        made = session.ask(storage_routes.create(session.project, "volume", asked))
    line(clean(made.text("name")))
    sys.stdout.flush()
    warn(made)
    return 0


def _set_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    limit_options(parser, none=True)
    parser.option("--shred", choices=("yes", "no"), help="overwrite it before its room is given back")
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )


def _set(options: "Options") -> int:
    from lamella.cli.spec import label_changes

    spec: Json = {}
    if bounds := asked_limits(options):
        spec["limits"] = bounds
    if options.shred is not None:
        spec["shred"] = options.shred == "yes"
    made = {name: value for name, value in (("spec", spec), ("labels", label_changes(options.label))) if value}
    if not made:
        raise invalid(
            "there is nothing to change", "say what: --iops 2000, --bandwidth 100MiB/s, --label KEY=VALUE", ""
        )
    session = Session(options)
    with Progress(f"changing {clean(options.name)}"):
        session.ask(routes.patch(session.project, "volume", options.name, render(made), wait=storage_routes.SETTLE))
    line(clean(options.name))
    return 0


def _resize_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    parser.positional("size", help="40GiB; +10GiB is that much more")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _resize(options: "Options") -> int:
    from lamella.model.quantity import parse_size

    session = Session(options)
    text: str = options.size
    wanted = parse_size(text.removeprefix("+"))
    if text.startswith("+"):
        wanted += session.get("volume", options.name).integer("status", "size") or 0
    request = storage_routes.verb(
        session.project, "volume", options.name, "resize", render({"size": wanted}), wait=None
    )
    operation = session.ask(request)
    line(clean(follow(session, operation, f"resizing {clean(options.name)}", quiet=options.quiet)))
    sys.stdout.flush()
    warn(session.get("volume", options.name))
    return 0


def _rename_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    parser.positional("new", help="what it will be called")


def _rename(options: "Options") -> int:
    return _verb(options, "rename", {"name": options.new})


def _verb(options: "Options", verb: str, asked: "Json") -> int:
    session = Session(options)
    with Progress(f"{verb} of {clean(options.name)}"):
        made = session.ask(storage_routes.verb(session.project, "volume", options.name, verb, render(asked)))
    line(clean(made.text("name")))
    return 0


def _attach_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    parser.positional("instance", help="INSTANCE, or INSTANCE:/PATH to mount it there")
    parser.option("--read-only", action="store_true", help="it cannot be written there")


def _attach(options: "Options") -> int:
    instance, _, target = options.instance.partition(":")
    return _verb(options, "attach", {"instance": instance, "target": target, "read_only": options.read_only})


def _detach_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    parser.positional("instance", nargs="?", help="(default: the only one that has it)")


def _detach(options: "Options") -> int:
    instance = options.instance
    if instance is None:
        session = Session(options)
        ids = [id.string for id in session.get("volume", options.name).each("status", "attached")]
        if len(ids) != 1:
            said = f"volume {options.name} is attached to {len(ids) or 'no'} instances"
            raise invalid(said, f"lamella volume detach {options.name} INSTANCE", "instance")
        instance = ids[0]
    return _verb(options, "detach", {"instance": instance})


def _unlock_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    parser.option("--passphrase-file", metavar="FILE", help="(default: it is asked for; - reads it from stdin)")


def _unlock(options: "Options") -> int:
    return _verb(options, "unlock", {"passphrase": _secret(options.passphrase_file, options.name)})


def _secret(path: "str | None", name: str) -> str:
    if path is not None or not sys.stdin.isatty():
        return passphrase_of(path if path is not None else "-")
    from getpass import getpass

    return getpass(f"passphrase of {name}: ")


def _rekey_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    key_options(parser)
    parser.option("--passphrase-file", metavar="FILE", help="what opens it now (- reads it from stdin)")
    parser.option("--new-passphrase-file", metavar="FILE", help="what is to open it from now on")


def _rekey(options: "Options") -> int:
    new = passphrase_of(options.new_passphrase_file)
    asked: Json = {"passphrase": passphrase_of(options.passphrase_file), "new_passphrase": new}
    if (how := wrap(options, bool(new))) is not None:
        asked["encryption"] = how
    return _verb(options, "rekey", {name: value for name, value in asked.items() if value})


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of volumes")
    parser.option("-f", "--force", action="store_true", help="with their snapshots")


def _rm(options: "Options") -> int:
    return each(
        options,
        "removing",
        lambda session, name: session.ask(
            routes.remove(session.project, "volume", name, force=options.force, wait=storage_routes.SETTLE)
        ),
    )


COMMANDS: "dict[str, Command]" = {
    "volume ls": (_ls_options, _ls),
    "volume show": (_show_options, show("volume", COLUMNS)),
    "volume create": (_create_options, _create),
    "volume set": (_set_options, _set),
    "volume resize": (_resize_options, _resize),
    "volume attach": (_attach_options, _attach),
    "volume detach": (_detach_options, _detach),
    "volume rename": (_rename_options, _rename),
    "volume unlock": (_unlock_options, _unlock),
    "volume rekey": (_rekey_options, _rekey),
    "volume rm": (_rm_options, _rm),
}
