"""``image``: bring images in, list them, take their disks out, forget them."""

import os
import sys

from lamella.cli.document import render
from lamella.cli.nouns import CREATED, NAME, both, size
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.cli.source import name_of
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser


def levels(image: "Document") -> "list[str]":
    """What *image* can be run as, by what it holds (``control/fitting.py`` decides)."""
    kinds = {artifact.text("kind") for artifact in image.each("status", "artifacts")}
    if "module" in kinds or image.text("status", "os") == "wasi":
        return ["wasm"]
    found: list[str] = []
    if next(image.each("status", "layers"), None) is not None:
        found += ["container", "microvm"]
    if "kernel" in kinds:
        found.append("unikernel")
    if kinds & {"disk", "cdrom"}:
        found += ["vm", "confidential"]
    return found


COLUMNS: "list[Column]" = [
    NAME,
    ("DIGEST", lambda item: item.text("status", "digest").removeprefix("sha256:")[:12]),
    ("SIZE", lambda item: size(item, "status", "size")),
    ("RUNS AS", lambda item: ", ".join(levels(item))),
    ("ARCHITECTURE", lambda item: item.text("status", "architecture")),
    ("SOURCE", lambda item: item.text("spec", "source")),
    CREATED,
]


def follow(session: Session, operation: "Document", what: str, *, quiet: bool) -> str:
    """Watch *operation* to its end; what it made.

    :raise LamellaError: what it failed with.
    """
    id = operation.text("id")
    with Progress(what, quiet=quiet) as progress:
        if operation.text("status", "phase") == "running":
            for _, seen in session.watch("operation", operation.integer("revision") or 0):
                if seen.text("id") != id:
                    continue
                operation = seen
                if seen.text("status", "phase") != "running":
                    break
                progress.update(
                    clean(seen.text("status", "step")),
                    seen.integer("status", "done") or 0,
                    seen.integer("status", "total") or 0,
                    unit=seen.text("status", "unit"),
                )
            else:
                operation = session.get("operation", id)
    phase = operation.text("status", "phase")
    if phase == "done":
        return operation.text("status", "result")
    from lamella.model.errors import error_for

    error = error_for(operation.text("status", "error_code") or "unavailable")
    raise error(
        operation.text("status", "error") or f"{what} has not ended",
        hint=operation.text("status", "hint") or f"lamella operation show {id}",
    )


def _bring(options: "Options", asked: "dict[str, object]", what: str) -> int:
    session = Session(options)
    body = render({name: value for name, value in asked.items() if value})
    operation = session.ask(routes.bring_image(session.project, body))
    line(clean(follow(session, operation, what, quiet=options.quiet)))
    return 0


def _named(parser: "Parser") -> None:
    parser.option("-n", "--name", help="what it will be called (default: from the source)")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _build_options(parser: "Parser") -> None:
    parser.positional("source", help="a short name: debian:12, debian:13")
    parser.option("--disk", action="store_true", help="a bootable disk, too: the image is run as a vm then besides")
    parser.option(
        "--with", action="append", default=[], dest="packages", metavar="PACKAGE", help="more packages (repeat, or a,b)"
    )
    _named(parser)


def _build(options: "Options") -> int:
    packages = [name for text in options.packages for name in text.replace(",", " ").split()]
    asked: dict[str, object] = {
        "verb": "build",
        "source": options.source,
        "name": options.name,
        "packages": packages,
        "disk": options.disk,
    }
    return _bring(options, asked, f"building {clean(options.source)}")


def _pull_options(parser: "Parser") -> None:
    parser.positional("source", help="docker://HOST/NAME:TAG or docker://HOST/NAME@DIGEST")
    parser.option(
        "--username", help="for the registry; the password is asked for, or read from LAMELLA_REGISTRY_PASSWORD"
    )
    parser.option("--password-stdin", action="store_true", help="read the password from standard input")
    parser.option("--insecure", action="store_true", help="speak HTTP, or accept any certificate")
    _named(parser)


def _pull(options: "Options") -> int:
    password = ""
    if options.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif options.username:
        password = os.environ.get("LAMELLA_REGISTRY_PASSWORD", "")
        if not password and sys.stdin.isatty():
            from getpass import getpass

            password = getpass(f"password of {options.username}: ")
    asked: dict[str, object] = {
        "verb": "pull",
        "source": options.source,
        "name": options.name,
        "username": options.username,
        "password": password,
        "insecure": options.insecure,
    }
    return _bring(options, asked, f"pulling {clean(options.source)}")


def _import_options(parser: "Parser") -> None:
    parser.positional(
        "source",
        help="a file or directory of the host that the daemon runs on: .qcow2 .raw .vmdk .vdi .vhdx .ova .iso .wasm .elf .tar",
    )
    parser.option("--initrd", metavar="FILE", help="goes with a kernel")
    _named(parser)


def _import(options: "Options") -> int:
    path = os.path.abspath(options.source)  # noqa: PTH100 - the daemon has another working directory
    asked: dict[str, object] = {"verb": "import", "source": path, "name": options.name or name_of(options.source)}
    if options.initrd is not None:
        asked["initrd"] = os.path.abspath(options.initrd)  # noqa: PTH100
    return _bring(options, asked, f"importing {clean(options.source)}")


FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx")


def _export_options(parser: "Parser") -> None:
    parser.positional("name", help="the image")
    parser.option("--format", choices=FORMATS, help="(default: as the FILE's name ends, else qcow2)")
    parser.option("-o", "--output", metavar="FILE", help="(default: standard output, when that is no terminal)")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _export(options: "Options") -> int:
    from lamella.cli import save

    ending = (options.output or "").rpartition(".")[2].lower()
    form = options.format or (ending if ending in FORMATS else "qcow2")
    save.check(options.output, "a disk", f"lamella image export {options.name} -o server.{form}")
    session = Session(options)
    with (
        Progress(f"exporting {clean(options.name)} as {form}", quiet=options.quiet) as progress,
        session.wire.stream(routes.export_image(session.project, options.name, format=form)) as pieces,
    ):
        save.save(pieces, options.output, progress)
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of images")


def _rm(options: "Options") -> int:
    session = Session(options)
    for name in options.name:
        session.ask(routes.remove(session.project, "image", name))
        line(clean(name))
    return 0


def _gc_options(parser: "Parser") -> None:
    parser.option("-q", "--quiet", action="store_true", help="only the number of bytes")


def _gc(options: "Options") -> int:
    from lamella.model.quantity import format_size

    with Progress("looking for what nothing uses", quiet=options.quiet):
        freed = Session(options).ask(routes.collect_images()).integer("bytes") or 0
    line(str(freed) if options.quiet else f"freed {format_size(freed)}")
    return 0


COMMANDS: "dict[str, Command]" = {
    **both("image", COLUMNS, lambda image: [f"runs as: {', '.join(levels(image)) or 'nothing by itself'}"]),
    "image build": (_build_options, _build),
    "image pull": (_pull_options, _pull),
    "image import": (_import_options, _import),
    "image export": (_export_options, _export),
    "image rm": (_rm_options, _rm),
    "image gc": (_gc_options, _gc),
}
