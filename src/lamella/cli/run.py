"""``run`` and ``create``: an instance from an image, followed to its end, or left to itself."""

import sys

from lamella.cli import machine, rates, spec
from lamella.cli.document import render
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.cli.source import image_of
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.parser import Command, Options, Parser

_SETTLE = 300.0
_BEFORE = frozenset({"pending", "starting", "stopped"})  # the phases before its command runs
_REMOVE = 60.0


def _options(parser: "Parser") -> None:
    parser.rest_after = 1
    # A kernel has no options that could be meant: `lamella run --isolation unikernel kernel.elf --cmdline TEXT`.
    parser.options_follow = lambda options: options.isolation == "unikernel"
    parser.positional(
        "image",
        nargs="?",
        help="IMAGE [--] [COMMAND ...]: an image or a file of this machine, and the command in place of the image's",
    )
    parser.option(
        "--isolation",
        choices=machine.LEVELS,
        metavar="LEVEL",
        help="container (default), wasm, microvm, unikernel, vm or confidential",
    )
    parser.option("--template", metavar="NAME", help="begin as a copy of it: there is no IMAGE then, only the command")
    parser.option("--no-template", action="store_true", help="boot, whatever there is to begin as a copy of")
    parser.option("--name", help="(default: one is chosen)")
    parser.option("-d", "--detach", action="store_true", help="print the name and come back at once")
    parser.option("--rm", action="store_true", help="remove it when its command ends")
    parser.option("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.option("-t", "--tty", action="store_true", help="give it a terminal")
    parser.option(
        "-e", "--env", action="append", default=[], metavar="KEY[=VALUE]", help="set a variable, or pass yours on"
    )
    parser.option("--env-file", action="append", default=[], metavar="FILE", help="lines of KEY=VALUE")
    parser.option("-w", "--workdir", metavar="DIR", help="working directory")
    parser.option("-u", "--user", metavar="USER[:GROUP]", help="name or number, resolved inside")
    parser.option("--entrypoint", metavar="PROGRAM", help="in place of the image's; empty for none")
    parser.option("--restart", default="no", metavar="POLICY", help="no, always, unless-stopped or on-failure[:N]")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")
    spec.size_options(parser)
    parser.option("--network", default="default", metavar="NAME", help="a network (default: default), or none")
    parser.option("--address", default="", metavar="ADDRESS", help="its address there (default: a free one)")
    parser.option("--address6", default="", metavar="ADDRESS", help="its IPv6 address there (default: a free one)")
    parser.option(
        "--firewall",
        action="append",
        default=[],
        metavar="NAME",
        help="what it lets in, and nothing else (repeat; none: not even the default)",
    )
    rates.options(parser)
    parser.option(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[IP:]HOST:PORT[/udp]",
        help="lead a port of the host to one inside",
    )
    parser.option("-h", "--hostname", metavar="NAME")
    parser.option("--stop-signal", metavar="SIGNAL", help="(default: the image's, or TERM)")
    parser.option("--stop-timeout", metavar="TIME", help="until force: 10s")
    parser.option("-q", "--quiet", action="store_true", help="no progress")
    machine.options(parser)


def _prepare(options: "Options", session: Session) -> None:
    """Have images made of what are files of this machine: of the image to run, and of the CDs."""
    spec.check_image(options)
    if options.template is not None:
        return
    options.image = image_of(session, options.image, initrd=options.initrd, quiet=options.quiet)
    options.iso = [image_of(session, word, quiet=options.quiet) for word in options.iso]


def _body(options: "Options", power: str, *, attached: bool = False) -> bytes:
    first = {"attach_epoch": 1} if attached and power == "running" else {}
    asked: dict[str, object] = {
        "spec": {**spec.instance(options), "power": power, **first},
        "labels": spec.labels(options.label),
    }
    if options.name is not None:
        asked["name"] = options.name
    return render(asked)


def _what(options: "Options") -> str:
    return f"a copy of {options.template}" if options.template is not None else str(options.image)


def _run(options: "Options") -> int:
    if options.detach:
        return _detached(options)
    if options.tty and options.interactive and not sys.stdin.isatty():
        from lamella.model.errors import Invalid

        raise Invalid("standard input is no terminal", hint="leave out -t to pass a file or a pipe on", field="tty")
    session = Session(options)
    _prepare(options, session)
    # What waits is given its command when it is taken: it begins when we are attached. Everything else is made, and then begun.
    power = "running" if options.template is not None else "stopped"
    with Progress(f"making an instance of {_what(options)}", quiet=options.quiet):
        made = session.ask(routes.create_instance(session.project, _body(options, power, attached=True)))
        channel = session.wire.channel(routes.attach_stream(session.project, made.text("id"), start=True))
    from lamella.cli.pump import Pump

    def starting() -> bool:
        from lamella.model.errors import LamellaError

        try:
            return session.get("instance", made.text("id")).text("status", "phase") in _BEFORE
        except LamellaError:
            return False  # its stream has more to say about it

    try:
        with Progress(f"starting {_what(options)}", quiet=options.quiet) as progress:
            pump = Pump(channel, terminal=options.tty, stdin=options.interactive)
            code = pump.run(progress, starting)
    finally:
        channel.close()
    if options.rm:
        _gone(session, made.text("id"))
    return code


def _gone(session: Session, id: str) -> None:
    """Wait until the instance is removed: whoever runs the next command finds its name and ports free."""
    from lamella.model.errors import NotFound

    try:
        with Progress("removing it"):
            session.ask(routes.wait_for(session.project, id, "removed", _REMOVE))
    except NotFound:
        pass


def _detached(options: "Options") -> int:
    session = Session(options)
    _prepare(options, session)
    with Progress(f"starting {_what(options)}", quiet=options.quiet):
        made = session.ask(routes.create_instance(session.project, _body(options, "running"), wait=_SETTLE))
    line(clean(made.text("name")))
    return failed(made)


def failed(instance: "Document") -> int:
    """0; or, when *instance* could not start, 125 to 127 and the reason on standard error."""
    code = instance.integer("status", "exit_code")
    never_ran = code in (126, 127) and not instance.text("status", "started_at")
    if instance.text("status", "phase") != "failed" and not never_ran:
        return 0
    sys.stdout.flush()
    said = False
    for condition in instance.each("status", "conditions"):
        if condition.text("message") and not condition.flag("status"):
            said = True
            sys.stderr.write(f"lamella: {clean(condition.text('message'))}\n")
            if condition.text("hint"):
                sys.stderr.write(f"  {clean(condition.text('hint'))}\n")
    if not said:
        name = clean(instance.text("name"))
        sys.stderr.write(
            f"lamella: {name} did not start\n  `lamella explain {name}` and `lamella logs {name}` may say why\n"
        )
    return code if code in (126, 127) else 125


def _create(options: "Options") -> int:
    session = Session(options)
    _prepare(options, session)
    made = session.ask(routes.create_instance(session.project, _body(options, "stopped")))
    line(clean(made.text("name")))
    return 0


COMMANDS: "dict[str, Command]" = {"run": (_options, _run), "create": (_options, _create)}
