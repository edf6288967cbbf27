"""``router``: what joins networks, and leads out of them."""

from lamella.cli.document import Document, render
from lamella.cli.each import each
from lamella.cli.nouns import CREATED, NAME, both
from lamella.cli.output import clean, line, show
from lamella.cli.session import Session
from lamella.client import router_routes, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]

COLUMNS: "list[Column]" = [
    NAME,
    ("NETWORKS", lambda item: str(len(list(item.each("spec", "networks"))))),
    ("UPLINK", lambda item: "yes" if item.flag("spec", "uplink") else "no"),
    ("ROUTES", lambda item: str(len(list(item.each("spec", "routes"))))),
    CREATED,
]


def _what(parser: "Parser") -> None:
    parser.option("--network", action="append", metavar="NAME", help="a network that it joins (repeat)")
    parser.option(
        "--route", action="append", metavar="PREFIX=ADDRESS", help="10.99.0.0/24=10.10.0.5: by an instance (repeat)"
    )


def _asked(options: "Options") -> "Json":
    from lamella.model.errors import Invalid

    found: Json = {}
    if options.network is not None:
        found["networks"] = [name for name in options.network if name != "none"]
    if options.route is not None:
        routes_asked: list[object] = []
        for text in options.route:
            destination, equals, via = text.partition("=")
            if text == "none":
                continue
            if not equals:
                raise Invalid(f"{text!r} is no route", hint="write it like 10.99.0.0/24=10.10.0.5", field="route")
            routes_asked.append({"destination": destination, "via": via})
        found["routes"] = routes_asked
    return found


def _create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    _what(parser)
    parser.option("--uplink", action="store_true", help="lead out, to whatever the host reaches")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels

    session = Session(options)
    asked = {"name": options.name, "uplink": options.uplink, "labels": labels(options.label), **_asked(options)}
    made = session.ask(router_routes.create_router(session.project, render(asked)))
    line(clean(made.text("name")))
    return 0


def _set_options(parser: "Parser") -> None:
    parser.positional("name", help="the router; its networks or routes become these (none: no one)")
    _what(parser)
    parser.option("--uplink", choices=("yes", "no"), help="whether it leads out")
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )


def _set(options: "Options") -> int:
    from lamella.cli.spec import label_changes
    from lamella.model.errors import Invalid

    spec = _asked(options)
    if options.uplink is not None:
        spec["uplink"] = options.uplink == "yes"
    asked: Json = {"spec": spec} if spec else {}
    if options.label:
        asked["labels"] = label_changes(options.label)
    if not asked:
        raise Invalid("there is nothing to change", hint="say what: --network NAME, --uplink yes, --route …")
    session = Session(options)
    session.ask(routes.patch(session.project, "router", options.name, render(asked)))
    line(clean(options.name))
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of routers; their networks go on without")


def _rm(options: "Options") -> int:
    return each(options, "removing", lambda session, name: session.ask(routes.remove(session.project, "router", name)))


def _show_options(parser: "Parser") -> None:
    parser.positional("name", help="its name or id")
    parser.output()


def _show(options: "Options") -> int:
    session = Session(options)
    found = session.get("router", options.name)
    if options.output != "table":
        show([found], options.output, COLUMNS, one=True)
        return 0
    line(f"router {clean(found.text('name'))} ({clean(found.text('id'))})")
    networks = {item.text("id"): item for item in session.find("network")[0]}
    for item in found.each("spec", "networks"):
        line(f"  network  {_network(networks.get(item.string), item.string)}")
    line(f"  uplink   {'yes' if found.flag('spec', 'uplink') else 'no'}")
    for item in found.each("spec", "routes"):
        line(f"  route    {clean(item.text('destination'))} by {clean(item.text('via'))}")
    return 0


def _network(found: "Document | None", id: str) -> str:
    if found is None:
        return clean(id)
    return clean(f"{found.text('name')} ({found.text('spec', 'subnet')}), gateway {found.text('status', 'gateway')}")


COMMANDS: "dict[str, Command]" = {
    **both("router", COLUMNS),
    "router show": (_show_options, _show),
    "router create": (_create_options, _create),
    "router set": (_set_options, _set),
    "router rm": (_rm_options, _rm),
}
