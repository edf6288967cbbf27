"""``volume import``, ``export``, ``move`` and ``tier``: volumes in from files, out as files, and from pool to pool."""

import os

from lamella.cli.document import render
from lamella.cli.image import follow
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.cli.source import name_of
from lamella.client import storage_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lamella.cli.parser import Command, Options, Parser

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd")


def _import_options(parser: "Parser") -> None:
    parser.positional("file", help="a disk on the host that the daemon runs on: .qcow2 .raw .vmdk .vdi .vhdx .vhd .ova")
    parser.option("-n", "--name", help="what the volume will be called (default: as the file)")
    parser.option("--pool", metavar="POOL", help="where it lies (default: default)")
    parser.option("--size", metavar="SIZE", help="larger than the disk is")
    parser.option("--format", choices=FORMATS, help="(default: what it is)")
    parser.option("--encrypt", action="store_true", help="encrypted; a key file of the host keeps the key")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _import(options: "Options") -> int:
    from lamella.model.quantity import parse_size

    path = os.path.abspath(options.file)  # noqa: PTH100 - the daemon has another working directory
    spec: dict[str, object] = {"form": "block"}
    if options.pool is not None:
        spec["pool"] = options.pool
    if options.size is not None:
        spec["size"] = parse_size(options.size)
    if options.encrypt:
        spec["encryption"] = "key-file"
    name = options.name or name_of(options.file).rpartition(".")[0][:63] or "disk"
    asked: dict[str, object] = {"name": name, "path": path, "spec": spec}
    if options.format is not None:
        asked["format"] = options.format
    session = Session(options)
    operation = session.ask(storage_routes.import_volume(session.project, render(asked)))
    line(clean(follow(session, operation, f"importing {clean(options.file)}", quiet=options.quiet)))
    return 0


def _export_options(parser: "Parser") -> None:
    parser.positional("name", help="VOLUME, or VOLUME@SNAPSHOT")
    parser.option("--format", choices=FORMATS, help="(default: as the FILE's name ends, else raw)")
    parser.option("-o", "--output", metavar="FILE", help="(default: standard output, when that is no terminal)")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _export(options: "Options") -> int:
    import hashlib
    import sys

    from lamella.cli import save
    from lamella.model.errors import Corrupt

    ending = (options.output or "").rpartition(".")[2].lower()
    form = options.format or (ending if ending in FORMATS else "raw")
    save.check(options.output, "a disk", f"lamella volume export {options.name} -o {options.name}.{form}")
    session, done = Session(options), hashlib.sha256()

    def hashed(pieces: "Iterable[bytes]") -> "Iterator[bytes]":
        for piece in pieces:
            done.update(piece)
            yield piece

    with (
        Progress(f"exporting {clean(options.name)} as {form}", quiet=options.quiet) as progress,
        session.wire.stream(storage_routes.export_volume(session.project, options.name, format=form)) as pieces,
    ):
        save.save(hashed(pieces), options.output, progress)
    told = session.ask(storage_routes.export_digest(session.project, options.name, format=form)).text("sha256")
    if told != done.hexdigest():
        raise Corrupt(f"{options.output or 'what came'} is not what the host sent", hint="export it again")
    if not options.quiet and options.output not in (None, "-"):
        sys.stderr.write(f"sha256:{told}\n")
    return 0


def _move_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    parser.option("--pool", metavar="POOL", required=True, help="where it goes")
    parser.option(
        "--speed", metavar="RATE", help="most bytes a second: 100MiB/s (default: what leaves its writer a share)"
    )
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _move(options: "Options") -> int:
    from lamella.model.quantity import parse_rate

    session = Session(options)
    speed = parse_rate(options.speed, field="speed") if options.speed is not None else 0
    asked = render({"pool": options.pool, "speed": speed})
    operation = session.ask(storage_routes.verb(session.project, "volume", options.name, "move", asked, wait=None))
    what = f"moving {clean(options.name)} to {clean(options.pool)}"
    line(clean(follow(session, operation, what, quiet=options.quiet)))
    return 0


def _tier_options(parser: "Parser") -> None:
    parser.positional("name", help="the volume")
    parser.option(
        "--policy", metavar="hot=POOL,cold=POOL,after=7d", help="to cold after that time without use, and back"
    )
    parser.option("--off", action="store_true", help="it stays where it is")


def _tier(options: "Options") -> int:
    from lamella.model.errors import Invalid
    from lamella.model.quantity import parse_duration

    example = "--policy hot=fast,cold=archive,after=7d, or --off"
    if options.off == (options.policy is not None):
        raise Invalid("say what moves it", hint=example, field="policy")
    policy: dict[str, object] | None = None
    if options.policy is not None:
        parts = dict(part.partition("=")[::2] for part in options.policy.split(","))
        if not {"hot", "cold"} <= set(parts) <= {"hot", "cold", "after"}:
            raise Invalid(f"{options.policy!r} is no policy", hint=example, field="policy")
        policy = {"hot": parts["hot"], "cold": parts["cold"]}
        if "after" in parts:
            policy["after"] = round(parse_duration(parts["after"], field="after"))
    session = Session(options)
    asked = render({"policy": policy})
    session.ask(storage_routes.verb(session.project, "volume", options.name, "tier", asked, wait=None))
    line(clean(options.name))
    return 0


COMMANDS: "dict[str, Command]" = {
    "volume import": (_import_options, _import),
    "volume export": (_export_options, _export),
    "volume move": (_move_options, _move),
    "volume tier": (_tier_options, _tier),
}
