"""``backup``: repositories, what is in them, what comes back, and what is done by itself; ``recover`` on a bare machine."""

import os
import sys

from lamella.cli import output, when
from lamella.cli.document import Document, render
from lamella.cli.image import follow
from lamella.cli.nouns import CREATED, NAME, PHASE, both, show, size
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import backup_routes, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser


def _verified(item: Document) -> str:
    at = item.text("status", "verified_at")
    if not at:
        return ""
    return f"{when.since(at)}" if item.flag("status", "verified") else "DAMAGED"


COLUMNS: "list[Column]" = [
    NAME,
    PHASE,
    ("OF", lambda item: item.text("spec", "volume_name") or item.text("spec", "instance")),
    ("REPOSITORY", lambda item: item.text("spec", "repository_name")),
    ("SIZE", lambda item: size(item, "status", "size")),
    ("READ", lambda item: size(item, "status", "read")),
    ("ADDED", lambda item: size(item, "status", "added")),
    ("TOOK", lambda item: f"{item.number('status', 'took') or 0:.1f}s"),
    ("VERIFIED", _verified),
    ("MOUNTED", lambda item: "yes" if item.text("status", "mounted") else ""),
    CREATED,
]

REPOSITORIES: "list[Column]" = [
    NAME,
    PHASE,
    ("PLACE", lambda item: item.text("spec", "url")),
    (
        "CHECKED",
        lambda item: when.since(item.text("status", "checked_at")) if item.text("status", "checked_at") else "",
    ),
    ("SOUND", lambda item: "NO" if next(item.each("status", "conditions"), None) is not None else "yes"),
    CREATED,
]

POLICIES: "list[Column]" = [
    NAME,
    ("REPOSITORY", lambda item: item.text("spec", "repository_name")),
    ("EVERY", lambda item: _span(item.integer("spec", "every") or 0)),
    ("KEEP", lambda item: _keep(item)),
    ("LAST", lambda item: when.since(item.text("status", "last")) if item.text("status", "last") else "never"),
    ("FAILED", lambda item: item.text("status", "failed")),
]
_KEEPS = ("last", "hourly", "daily", "weekly", "monthly")


def _span(seconds: int) -> str:
    for name, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds // length}{name}"
    return f"{seconds}s"


def _keep(item: Document) -> str:
    counts = [(name, item.integer("spec", "keep", name) or 0) for name in _KEEPS]
    return " ".join(f"{count} {name}" for name, count in counts if count) or "all"


def invalid(message: str, hint: str, field: str) -> Exception:
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint, field=field)


# --- repositories


def place_options(parser: "Parser") -> None:
    """How to come to a repository; what is secret is in the environment or in files."""
    parser.option("--ssh-key", metavar="FILE", help="SFTP: the private key to come with (default: the host's own)")
    parser.option(
        "--known-hosts", metavar="FILE", help="SFTP: the server's keys (default: the first is believed, and kept)"
    )
    parser.option("--region", help="S3: its region; the key pair is AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    parser.option(
        "--key-file", metavar="FILE", help="the recovery key of a repository that is there (- reads it from stdin)"
    )


def asked_place(options: "Options", url: str) -> "dict[str, object]":
    """``credentials`` and ``recovery_key`` of a request."""
    credentials: dict[str, str] = {}
    if url.startswith("s3"):
        credentials["access_key"] = os.environ.get("AWS_ACCESS_KEY_ID", "")
        credentials["secret_key"] = os.environ.get("AWS_SECRET_ACCESS_KEY", "")
        credentials["region"] = options.region or os.environ.get("AWS_DEFAULT_REGION", "")
    for name, path in (("ssh_key", options.ssh_key), ("known_hosts", options.known_hosts)):
        if path is not None:
            credentials[name] = _text(path)
    made: dict[str, object] = {"credentials": {name: value for name, value in credentials.items() if value}}
    if options.key_file is not None:
        made["recovery_key"] = _text(options.key_file).strip()
    return made


def _text(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    from lamella.cli.machine import read

    return read(path)


def _repository_create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    parser.option("--to", metavar="PLACE", help="/DIRECTORY, s3://HOST/BUCKET/PATH or sftp://USER@HOST/PATH")
    parser.option("--host-name", metavar="HOST", help="the host that goes to it (default: any)")
    place_options(parser)


def _repository_create(options: "Options") -> int:
    if not options.to:
        raise invalid("a repository needs a place", "say where: --to /mnt/usb", "to")
    session = Session(options)
    url = os.path.abspath(options.to) if "://" not in options.to else options.to  # noqa: PTH100
    asked = {"name": options.name, "url": url, "host": options.host_name or "", **asked_place(options, url)}
    with Progress(f"making repository {clean(options.name)}"):
        made = session.ask(backup_routes.create_repository(session.project, render(asked)))
    line(clean(made.text("repository", "name")))
    if options.key_file is None:
        sys.stderr.write(
            "its recovery key, told this once; whoever has it can read all that is in the repository:\n\n"
            f"    {made.text('recovery_key')}\n\n"
            "Keep it away from this machine: without it nothing comes back when this machine is lost.\n"
        )
    return 0


def _removing(kind: str, what: str) -> "Command":
    def prepare(parser: "Parser") -> None:
        parser.positional("name", nargs="+", help=what)
        if kind == "repository":
            parser.option(
                "-f", "--force", action="store_true", help="its backups are forgotten, too; they stay where they are"
            )

    def act(options: "Options") -> int:
        session = Session(options)
        for name in options.name:
            force = kind == "repository" and options.force
            session.ask(routes.remove(session.project, kind, name, force=force))
            line(clean(name))
        return 0

    return prepare, act


# --- backups


def _create_options(parser: "Parser") -> None:
    parser.positional("of", nargs="?", help="the volume; with --instance the instance; none: the layer's own state")
    parser.option("--to", metavar="REPOSITORY", help="where it is kept (default: the only one there is)")
    parser.option("--instance", action="store_true", help="all volumes of an instance, at one instant")
    parser.option("--consistent", action="store_true", help="freeze the guest's filesystems meanwhile")
    parser.option("-n", "--name", help="what it will be called (default: after the volume and the time)")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _repository(session: Session, given: "str | None", flag: str = "--to") -> str:
    if given:
        return given
    found, _ = session.find("repository")
    if len(found) == 1:
        return found[0].text("name")
    if not found:
        raise invalid("there is no repository", "make one: lamella backup repository create NAME --to PLACE", "to")
    names = ", ".join(clean(item.text("name")) for item in found)
    raise invalid(f"there are {len(found)} repositories: {names}", f"name one: {flag} REPOSITORY", "to")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels

    session = Session(options)
    asked: dict[str, object] = {
        "repository": _repository(session, options.to),
        "name": options.name or "",
        "consistent": options.consistent,
        "labels": labels(options.label),
    }
    if options.of is not None:
        asked["instance" if options.instance else "volume"] = options.of
    operation = session.ask(backup_routes.create(session.project, render(asked)))
    for name in follow(
        session, operation, f"backing up {clean(options.of or 'the layer')}", quiet=options.quiet
    ).split():
        line(clean(name))
    return 0


def _ls_options(parser: "Parser") -> None:
    parser.positional("of", nargs="?", help="only those of this volume or instance")
    parser.option("--in", dest="repository", metavar="REPOSITORY", help="only those in this repository")
    parser.option("-a", "--all", action="store_true", help="the layer's state, too, that is kept beside each backup")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="only what bears the label")
    parser.option("-q", "--quiet", action="store_true", help="names only")
    parser.output()


def _ls(options: "Options") -> int:
    from lamella.cli.spec import labels

    found, _ = Session(options).find("backup", labels(options.label))
    found = [
        item
        for item in found
        if options.of in (None, item.text("spec", "volume_name"), item.text("spec", "instance"))
        and (options.all or item.text("spec", "policy") != "beside")
        and options.repository in (None, item.text("spec", "repository_name"))
    ]
    output.show(found, "name" if options.quiet else options.output, COLUMNS)
    return 0


def _show_options(parser: "Parser") -> None:
    _name_options(parser)
    parser.output()


def _show(options: "Options") -> int:
    found, _ = Session(options).find("backup")
    whole = [item for item in found if item.text("status", "engine_id")]
    newest = {item.text("spec", "volume_name"): item.text("name") for item in whole}
    if options.name not in [item.text("name") for item in found]:
        options.name = newest.get(options.name, options.name)
    return show("backup", COLUMNS)(options)


def _verify_options(parser: "Parser") -> None:
    parser.positional("name", nargs="*", help="backups, or volumes (their newest); none: the newest of every volume")
    parser.option("--in", dest="repository", metavar="REPOSITORY", help="(default: the only one there is)")
    parser.option("--full", action="store_true", help="read all of the repository, not a tenth")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _verify(options: "Options") -> int:
    session = Session(options)
    repository = _repository(session, options.repository, "--in")
    asked: dict[str, object] = {"share": 100 if options.full else 10, "backups": list(options.name)}
    operation = session.ask(backup_routes.repository_verb(session.project, repository, "verify", render(asked)))
    follow(session, operation, f"verifying {clean(repository)}", quiet=options.quiet)
    report = session.get("operation", operation.text("id"))
    findings = list(report.each("status", "report", "findings"))
    for found in findings:
        line(f"{clean(found.text('subject'))}: {clean(found.text('problem'))}")
    checked = report.integer("status", "report", "checked") or 0
    line(f"{checked} restored in part and compared, {len(findings) or 'no'} findings")
    return 1 if findings else 0


def _restore_options(parser: "Parser") -> None:
    parser.positional("name", help="the backup, or a volume: its newest one; with --instance an instance")
    parser.option("--as", dest="new", metavar="NAME", help="what to make (default: what it is of)")
    parser.option("--instance", action="store_true", help="the instance and all its volumes; it is stopped then")
    parser.option("--pool", help="where to make volumes (default: where they were)")
    parser.option(
        "-f", "--force", action="store_true", help="over the volume of that name; no instance that has it may run"
    )
    parser.option("--passphrase-file", metavar="FILE", help="what keeps the volume's key (- reads it from stdin)")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _restore(options: "Options") -> int:
    session = Session(options)
    name = options.new
    if name is None:
        found, _ = session.find("backup")
        field = "instance" if options.instance else "volume_name"
        names = {item.text("name"): item.text("spec", field) for item in found}
        name = names.get(options.name) or options.name
    asked: dict[str, object] = {
        "name": name,
        "pool": options.pool or "",
        "force": options.force,
        "instance": options.instance,
    }
    if options.passphrase_file is not None:
        asked["passphrase"] = _text(options.passphrase_file).split("\n", 1)[0].rstrip("\r")
    operation = session.ask(backup_routes.verb(session.project, options.name, "restore", render(asked)))
    line(clean(follow(session, operation, f"restoring {clean(options.name)}", quiet=options.quiet)))
    return 0


def _name_options(parser: "Parser") -> None:
    parser.positional("name", help="the backup, or a volume: its newest one")


def _mount(options: "Options") -> int:
    session = Session(options)
    with Progress(f"mounting {clean(options.name)}"):
        made = session.ask(backup_routes.verb(session.project, options.name, "mount"))
    line(clean(made.text("path")))
    return 0


def _unmount(options: "Options") -> int:
    session = Session(options)
    session.ask(backup_routes.verb(session.project, options.name, "unmount"))
    line(clean(options.name))
    return 0


def _prune_options(parser: "Parser") -> None:
    parser.option("--in", dest="repository", metavar="REPOSITORY", help="(default: the only one there is)")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _prune(options: "Options") -> int:
    session = Session(options)
    repository = _repository(session, options.repository, "--in")
    operation = session.ask(backup_routes.repository_verb(session.project, repository, "prune"))
    line(clean(follow(session, operation, f"pruning {clean(repository)}", quiet=options.quiet)))
    return 0


# --- policies


def _policy_options(parser: "Parser") -> None:
    parser.positional("volume", nargs="?", help="the volume; none: the layer's own state")
    parser.option("--to", metavar="REPOSITORY", help="(default: the only one there is)")
    parser.option("--every", metavar="TIME", help="(default: as often as what is kept asks for, a day at most)")
    for name in _KEEPS:
        parser.option(
            f"--{name}", metavar="N", default="0", help=f"keep {name}" if name != "last" else "keep the newest"
        )
    parser.option("--verify", metavar="TIME", default="7d", help="how often it is verified; 0 is never (7d)")


def _policy_set(options: "Options") -> int:
    from lamella.model.quantity import parse_duration

    keep = {name: _count(getattr(options, name), name) for name in _KEEPS}
    every = 3600 if keep["hourly"] else 86400
    if not keep["hourly"] and not keep["daily"] and not keep["last"] and keep["weekly"]:
        every = 7 * 86400
    session = Session(options)
    asked: dict[str, object] = {
        "volume": options.volume or "",
        "repository": _repository(session, options.to),
        "every": round(parse_duration(options.every, field="every")) if options.every is not None else every,
        "keep": keep,
        "verify_every": round(parse_duration(options.verify, field="verify")) if options.verify != "0" else 0,
    }
    line(clean(session.ask(backup_routes.put_policy(session.project, render(asked))).text("name")))
    return 0


def _count(text: str, field: str) -> int:
    if not text.isdecimal() or len(text) > 4:
        raise invalid(f"--{field} {text!r} is no number", "say how many are kept: --daily 7", field)
    return int(text)


# --- a bare machine


def _recover_options(parser: "Parser") -> None:
    parser.option("--from", dest="source", metavar="PLACE", help="the repository: /DIRECTORY, s3://…, sftp://…")
    parser.option(
        "--home", metavar="DIR", help="where the layer will live ($LAMELLA_HOME, /var/lib/lamella); empty still"
    )
    place_options(parser)


def _recover(options: "Options") -> int:
    if not options.source:
        raise invalid("recovery needs a repository", "say where it is: --from /mnt/usb", "from")
    # There is no daemon yet: the one that will be brings its own state back.
    words = ["lamellad", "--recover", options.source]
    for name in ("home", "key_file", "ssh_key", "known_hosts", "region"):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", value]
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "lamellad")  # noqa: PTH100, PTH118, PTH120
    sys.stdout.flush()
    os.execvp(beside if os.access(beside, os.X_OK) else "lamellad", words)


def _nested(commands: "dict[str, Command]") -> "dict[str, Command]":
    return {f"backup {name}": command for name, command in commands.items()}


COMMANDS: "dict[str, Command]" = {
    **_nested(both("repository", REPOSITORIES)),
    **_nested(both("policy", POLICIES)),
    "backup repository create": (_repository_create_options, _repository_create),
    "backup repository rm": _removing("repository", "names of repositories"),
    "backup policy set": (_policy_options, _policy_set),
    "backup policy rm": _removing("policy", "names of volumes, or layer"),
    "backup ls": (_ls_options, _ls),
    "backup show": (_show_options, _show),
    "backup create": (_create_options, _create),
    "backup verify": (_verify_options, _verify),
    "backup restore": (_restore_options, _restore),
    "backup mount": (_name_options, _mount),
    "backup unmount": (_name_options, _unmount),
    "backup rm": _removing("backup", "names of backups"),
    "backup prune": (_prune_options, _prune),
    "recover": (_recover_options, _recover),
}
