"""``fork``: copies of a running instance."""

import sys

from lamella.cli.document import render
from lamella.cli.image import follow
from lamella.cli.output import clean, line
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Command, Options, Parser


def _options(parser: "Parser") -> None:
    parser.positional("instance", help="the instance; it runs, and goes on")
    parser.option("-n", "--count", metavar="NUMBER", default="1", help="how many copies, all or none (default: 1)")
    parser.option("--name", metavar="PREFIX", help="call them PREFIX-1, PREFIX-2 … (default: the instance's name)")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label on each")
    parser.option("-q", "--quiet", action="store_true", help="names only")


def _fork(options: "Options") -> int:
    from lamella.cli.spec import labels

    count: str = options.count
    if not count.isdecimal() or not int(count):
        from lamella.model.errors import Invalid

        raise Invalid(f"{count!r} is no number of copies", hint="write it like --count 8", field="count")
    asked: dict[str, object] = {"count": int(count), "labels": labels(options.label)}
    if options.name is not None:
        asked["name"] = options.name
    session = Session(options)
    operation = session.ask(routes.fork(session.project, options.instance, render(asked)))
    made = follow(session, operation, f"forking {clean(options.instance)}", quiet=options.quiet)
    for name in made.split(", "):
        line(clean(name))
    if not options.quiet:
        pause = session.get("operation", operation.text("id")).number("status", "pause") or 0
        sys.stdout.flush()
        sys.stderr.write(f"{clean(options.instance)} stood still for {pause * 1000:.0f} ms\n")
    return 0


COMMANDS: "dict[str, Command]" = {"fork": (_options, _fork)}
