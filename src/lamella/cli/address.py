"""``address``: floating addresses, which lead from outside to an instance."""

from lamella.cli.document import render
from lamella.cli.each import each
from lamella.cli.nouns import CREATED, NAME, both
from lamella.cli.output import clean, line, show
from lamella.cli.session import Session
from lamella.client import router_routes, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

COLUMNS: "list[Column]" = [NAME, ("ADDRESS", lambda item: item.text("spec", "address")), CREATED]


def _create_options(parser: "Parser") -> None:
    parser.positional("address", nargs="?", help="which one (default: a free one)")
    parser.option("--attach", default="", metavar="INSTANCE", help="whom it leads to at once")
    parser.option("--network", default="", metavar="NAME", help="of that external network (default: the only one)")
    parser.option("--name", default="", help="what it will be called (default: as it is written)")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels

    session = Session(options)
    asked = {
        "name": options.name,
        "address": options.address or "",
        "network": options.network,
        "instance": options.attach,
        "labels": labels(options.label),
    }
    made = session.ask(router_routes.create_address(session.project, render(asked)))
    line(clean(made.text("spec", "address")))
    return 0


def _attach_options(parser: "Parser") -> None:
    parser.positional("name", help="the address")
    parser.positional("instance", help="whom it leads to")


def _attach(options: "Options") -> int:
    session = Session(options)
    session.ask(router_routes.attach(session.project, options.name, render({"instance": options.instance})))
    line(clean(options.instance))
    return 0


def _names_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of addresses")


def _detach(options: "Options") -> int:
    return each(options, "detaching", lambda session, name: session.ask(router_routes.detach(session.project, name)))


def _rm(options: "Options") -> int:
    return each(
        options, "giving back", lambda session, name: session.ask(routes.remove(session.project, "address", name))
    )


def _ls_options(parser: "Parser") -> None:
    parser.option("-q", "--quiet", action="store_true", help="names only")
    parser.output()


def _ls(options: "Options") -> int:
    session = Session(options)
    names = {item.text("id"): item.text("name") for item in session.find("instance")[0]}
    columns: list[Column] = [
        *COLUMNS[:2],
        ("LEADS TO", lambda item: names.get(item.text("status", "instance"), item.text("status", "instance"))),
        CREATED,
    ]
    show(session.find("address")[0], "name" if options.quiet else options.output, columns)
    return 0


COMMANDS: "dict[str, Command]" = {
    **both("address", COLUMNS),
    "address ls": (_ls_options, _ls),
    "address create": (_create_options, _create),
    "address attach": (_attach_options, _attach),
    "address detach": (_names_options, _detach),
    "address rm": (_names_options, _rm),
}
