"""``screenshot``, ``type``, ``dump`` and ``console``: what a person does at a machine that stands somewhere else."""

import sys

from lamella.cli.document import render
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Command, Options, Parser

_TYPING = 600.0
LEAVE = b"\x1d"  # Ctrl-], as telnet and virsh have it


def _screenshot_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.option("-o", "--output", metavar="FILE", help="a PNG (default: standard output, when that is no terminal)")


def _screenshot(options: "Options") -> int:
    from lamella.cli import save

    save.check(options.output, "a picture", f"lamella screenshot {options.name} -o {options.name}.png")
    session = Session(options)
    picture = session.wire.exchange(routes.screenshot(session.project, options.name)).body
    save.save([picture], options.output)
    return 0


def _type_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.positional("text", nargs="?", default="", help="typed on a US keyboard; \\n is Enter, \\t is Tab")
    parser.option(
        "--key", action="append", default=[], metavar="KEY", help="pressed after the text: enter, f12, ctrl-alt-delete"
    )
    parser.option(
        "--click", action="append", default=[], metavar="X,Y[,BUTTON]", help="then: 0.5,0.5 is the middle of the screen"
    )


def hands(options: "Options") -> "dict[str, object]":
    """What ``type`` sends.

    :raise Invalid: when there is nothing to do, or something is not understood.
    """
    from lamella.client import keys

    made: dict[str, object] = {
        "text": keys.unescape(options.text),
        "keys": [keys.chord(text) for text in options.key],
        "pointer": [keys.click(text) for text in options.click],
    }
    made = {name: value for name, value in made.items() if value}
    if not made:
        from lamella.model.errors import Invalid

        raise Invalid("there is nothing to type", hint="say what: 'root\\n', --key ctrl-alt-delete, --click 0.5,0.5")
    return made


def _type(options: "Options") -> int:
    body = render(hands(options))
    session = Session(options)
    with Progress(f"typing at {clean(options.name)}"):
        session.ask(routes.send_input(session.project, options.name, body, wait=_TYPING))
    line(clean(options.name))
    return 0


def _dump_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.option(
        "-o", "--output", metavar="FILE", help="an ELF core (default: standard output, when that is no terminal)"
    )
    parser.option("--crash", action="store_true", help="what was kept when its kernel crashed")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _dump(options: "Options") -> int:
    from lamella.cli import save

    save.check(options.output, "a machine's memory", f"lamella dump {options.name} -o {options.name}.core")
    session = Session(options)
    with (
        Progress(f"reading the memory of {clean(options.name)}", quiet=options.quiet) as progress,
        session.wire.stream(routes.dump(session.project, options.name, crash=options.crash)) as pieces,
    ):
        # Memory holds secrets: the file is its owner's.
        save.save(pieces, options.output, progress, mode=0o600)
    return 0


def _console_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")


def _console(options: "Options") -> int:
    from lamella.cli.pump import Pump

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    session = Session(options)
    channel = session.wire.channel(routes.attach_stream(session.project, options.name))
    try:
        if terminal:
            sys.stderr.write(f"lamella: at the console of {clean(options.name)}; Ctrl-] lets go, Enter may wake it\n")
        code = Pump(channel, terminal=terminal, stdin=True, leave=LEAVE).run()
        if terminal:
            sys.stderr.write(f"\nlamella: left the console of {clean(options.name)}\n")
        return code
    finally:
        channel.close()


COMMANDS: "dict[str, Command]" = {
    "screenshot": (_screenshot_options, _screenshot),
    "type": (_type_options, _type),
    "dump": (_dump_options, _dump),
    "console": (_console_options, _console),
}
