"""``set``: change what an instance was asked to be."""

from lamella.cli import rates, spec
from lamella.cli.document import render
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Command, Options, Parser

_WAIT = 120.0


def _options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    spec.size_options(parser)
    rates.options(parser)
    parser.option("--nic", metavar="NAME", help="whose rates: as `lamella device ls` calls it (default: the first)")
    parser.option("--restart", metavar="POLICY", help="no, always, unless-stopped or on-failure[:N]")
    parser.option("--stop-timeout", metavar="TIME", help="until force: 10s")
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )


def patch(options: "Options") -> dict[str, object]:
    """The merge patch that the options ask for.

    :raise Invalid: when they ask for nothing, or for something that is not understood.
    """
    changed: dict[str, object] = spec.sizes(options)
    if options.restart is not None:
        changed["restart"] = spec.restart(options.restart)
    if options.stop_timeout is not None:
        from lamella.model.quantity import parse_duration

        changed["stop_timeout"] = parse_duration(options.stop_timeout, field="stop-timeout")
    texts: list[str] = options.label
    removed = [text for text in texts if text.endswith("-") and "=" not in text]
    labels: dict[str, str | None] = {**spec.labels([text for text in texts if text not in removed])}
    labels |= {text[:-1]: None for text in removed}
    made: dict[str, object] = {name: value for name, value in (("spec", changed), ("labels", labels)) if value}
    if options.nic is not None and not rates.asked(options):
        from lamella.model.errors import Invalid

        raise Invalid("nothing of the NIC is to be changed", hint="say what: --rate-in 100Mbit", field="nic")
    if not made and not rates.asked(options):
        from lamella.model.errors import Invalid

        raise Invalid(
            "there is nothing to change",
            hint="say what: --memory 1GiB, --cpu 2, --cpu-guarantee 1, --restart always, --rate-in 100Mbit, --label KEY=VALUE",
        )
    return made


def _set(options: "Options") -> int:
    changes = patch(options)
    session = Session(options)
    with Progress(f"changing {clean(options.name)}"):
        if rates.asked(options):
            rates.change(session, options, changes, wait=_WAIT)
        else:
            session.ask(routes.patch(session.project, "instance", options.name, render(changes), wait=_WAIT))
    line(clean(options.name))
    return 0


COMMANDS: "dict[str, Command]" = {"set": (_options, _set)}
