"""``device``: what is plugged into an instance, plugged in and taken out while it runs."""

from lamella.cli import output
from lamella.cli.document import Document, render
from lamella.cli.nouns import size
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import devices, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]
    Change = Callable[[Json], tuple[str, Json]]

_WAIT = 120.0
_TRIES = 5

COLUMNS: "list[Column]" = [
    ("NAME", lambda item: item.text("name")),
    ("KIND", lambda item: item.text("kind")),
    ("WHAT", lambda item: item.text("what")),
    ("STATE", lambda item: item.text("state")),
]


def _attach_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.positional("kind", choices=("disk", "nic", "cdrom", "usb"), help="disk, nic, cdrom or usb")
    parser.positional(
        "what",
        nargs="?",
        help="a disk's SIZE; a nic's NETWORK (default); a cdrom's IMAGE|FILE; a usb device's VENDOR:PRODUCT",
    )
    parser.option(
        "-n", "--name", dest="device", metavar="DEVICE", help="its name (default: disk1, nic1, cdrom1, usb1 …)"
    )
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _description(options: "Options", session: Session) -> "Json":
    """The device as the API has it.

    :raise Invalid: when it is not said which, or not understood.
    """
    kind, what = options.kind, options.what
    if kind == "nic":
        return {"network": what or "default"}
    if what is None:
        from lamella.model.errors import Invalid

        example = {"disk": "10GiB", "cdrom": "installer.iso", "usb": "1d6b:0002"}[kind]
        raise Invalid(
            f"it is not said which {kind}", hint=f"lamella device attach {options.name} {kind} {example}", field="what"
        )
    if kind == "disk":
        from lamella.model.quantity import parse_size

        return {"size": parse_size(what, field="size")}
    if kind == "usb":
        from lamella.client.machine import usb

        return {"device": usb(what)}
    from lamella.cli.source import image_of

    return {"image": image_of(session, what, quiet=options.quiet)}


def _attach(options: "Options") -> int:
    session = Session(options)
    description = _description(options, session)
    line(
        clean(
            _change(
                session,
                options,
                "attaching",
                lambda spec: devices.attach(spec, options.kind, description, options.device),
            )
        )
    )
    return 0


def _detach_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.positional("device", help="as `lamella device ls` calls it")
    parser.option("-f", "--force", action="store_true", help="a disk, too: what is on it goes with it")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _detach(options: "Options") -> int:
    session = Session(options)
    _change(session, options, "detaching", lambda spec: devices.detach(spec, options.device, force=options.force))
    line(clean(options.device))
    return 0


def _change(session: Session, options: "Options", doing: str, change: "Change") -> str:
    """Make *change* of the spec as it is now, anew when somebody else was quicker; what it gave."""
    from lamella.model.errors import StaleRevision

    with Progress(f"{doing} {options.kind if doing == 'attaching' else clean(options.device)}", quiet=options.quiet):
        for left in reversed(range(_TRIES)):
            read = session.get("instance", options.name)
            spec = read.at("spec")
            made, patch = change(spec if isinstance(spec, dict) else {})  # pyright: ignore[reportUnknownArgumentType]
            request = routes.patch(
                session.project,
                "instance",
                options.name,
                render({"spec": patch}),
                revision=read.integer("revision"),
                wait=_WAIT,
            )
            try:
                session.ask(request)
            except StaleRevision:
                if not left:
                    raise
                continue
            return made
    raise AssertionError("the last try returns or raises")


def table(instance: Document) -> "list[Document]":
    """What *instance* has: first what is the machine's own, then what can be taken out, with its state."""
    spec = instance.at("spec")
    known = spec if isinstance(spec, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    present = {name.string for name in instance.each("status", "devices")}
    running = instance.text("status", "phase") in ("running", "paused")
    rows: list[Json] = [{"name": "root", "kind": "disk", "what": size(instance, "spec", "disk"), "state": "built in"}]
    first = next(instance.each("spec", "nics"), None)
    if first is not None:
        rows.append({"name": "nic", "kind": "nic", "what": first.text("network"), "state": "built in"})
    for kind, name, item in devices.devices(known):  # pyright: ignore[reportUnknownArgumentType]
        state = "plugged in" if name in present else "on its way" if running else "at the next start"
        rows.append({"name": name, "kind": kind, "what": _what(Document(item)), "state": state})
    return [Document(row) for row in rows]


def _what(item: Document) -> str:
    return item.text("image") or item.text("device") or item.text("network") or size(item, "size")


def _ls_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.output()


def _ls(options: "Options") -> int:
    found = Session(options).get("instance", options.name)
    output.show(table(found), options.output, COLUMNS)
    return 0


COMMANDS: "dict[str, Command]" = {
    "device attach": (_attach_options, _attach),
    "device detach": (_detach_options, _detach),
    "device ls": (_ls_options, _ls),
}
