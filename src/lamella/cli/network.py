"""``network`` and ``port``: what instances are plugged into, and where they are plugged in."""

from lamella.cli import capture
from lamella.cli.document import Document, render
from lamella.cli.each import each
from lamella.cli.nouns import CREATED, NAME, both
from lamella.cli.output import clean, line, show, structured, table
from lamella.cli.ps import outline
from lamella.cli.session import Session
from lamella.client import network_routes, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]
    Names = dict[str, str]


def _both(four: str, six: str) -> str:
    """What there is of both families."""
    return f"{four}, {six}" if six else four


COLUMNS: "list[Column]" = [
    NAME,
    ("SUBNET", lambda item: _both(item.text("spec", "subnet"), item.text("spec", "subnet6"))),
    ("GATEWAY", lambda item: _both(item.text("status", "gateway"), item.text("status", "gateway6"))),
    ("MTU", lambda item: str(item.integer("status", "mtu") or item.integer("spec", "mtu") or "")),
    ("OUT", lambda item: "no" if item.flag("spec", "isolated") else "yes"),
    CREATED,
]


def _create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    parser.option(
        "--subnet", action="append", default=[], metavar="SUBNET",
        help="10.10.0.0/24 (default: a free one); once more for IPv6: fd10::/64",
    )  # fmt: skip
    parser.option("--isolated", action="store_true", help="its instances reach each other and nothing else")
    parser.option("--external", action="store_true", help="a subnet that comes to the hosts, for floating addresses")
    parser.option(
        "--router", default="", metavar="NAME", help="behind this router: it may overlap networks that are not"
    )
    parser.option("--mtu", type=int, default=1500, metavar="BYTES", help="largest packet (default: 1500)")
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels

    asked: Json = {
        "name": options.name,
        **_subnets(options.subnet),
        "mtu": options.mtu,
        "isolated": options.isolated,
        "external": options.external,
        "router": options.router,
        "labels": labels(options.label),
    }
    session = Session(options)
    made = session.ask(network_routes.create(session.project, render(asked)))
    line(clean(made.text("name")))
    return 0


def _subnets(given: "list[str]") -> "Json":
    """One of each family at most. :raise Invalid: when there are two of one."""
    from lamella.model.errors import Invalid

    six = [subnet for subnet in given if ":" in subnet]
    four = [subnet for subnet in given if ":" not in subnet]
    for family, some in (("IPv4", four), ("IPv6", six)):
        if len(some) > 1:
            raise Invalid(
                f"{' and '.join(some)}: a network has one subnet of {family}",
                hint="make a network for each, or name one of IPv4 and one of IPv6",
                field="subnet",
            )
    return {"subnet": "".join(four), **({"subnet6": six[0]} if six else {})}


def _set_options(parser: "Parser") -> None:
    parser.positional("name", help="the network")
    parser.option("--isolated", choices=("yes", "no"), help="whether its instances reach each other and nothing else")
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )


def _set(options: "Options") -> int:
    from lamella.cli.spec import label_changes
    from lamella.model.errors import Invalid

    asked: Json = {}
    if options.isolated is not None:
        asked["spec"] = {"isolated": options.isolated == "yes"}
    if options.label:
        asked["labels"] = label_changes(options.label)
    if not asked:
        raise Invalid("nothing to change was named", hint="see: lamella network set --help")
    session = Session(options)
    session.ask(routes.patch(session.project, "network", options.name, render(asked)))
    line(clean(options.name))
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of networks that nobody is on")


def _rm(options: "Options") -> int:
    return each(options, "removing", lambda session, name: session.ask(routes.remove(session.project, "network", name)))


def _show_options(parser: "Parser") -> None:
    parser.positional("name", help="its name or id")
    parser.option("--topology", action="store_true", help="as a picture: the way out, and whoever is on it")
    parser.output()


def _show(options: "Options") -> int:
    session = Session(options)
    found = session.get("network", options.name)
    if options.output != "table":
        show([found], options.output, COLUMNS, one=True)
        return 0
    if options.topology:
        from lamella.cli.topology import picture

        kinds = ("port", "instance", "firewall", "router", "balancer", "address")
        for text in picture(found, {kind: session.find(kind)[0] for kind in kinds}):
            line(text)
        return 0
    for text in outline(found):
        line(text)
    ports = [port for port in session.find("port")[0] if port.text("spec", "network") == found.text("id")]
    names = _names(session, "instance")
    rows = [
        (names.get(port.text("spec", "owner"), ""), port.text("spec", "address"), port.text("spec", "mac"))
        for port in ports
    ]
    for text in table(("INSTANCE", "ADDRESS", "MAC"), rows) if rows else []:
        line(text)
    return 0


def _names(session: Session, kind: str) -> "Names":
    """Names by id."""
    return {item.text("id"): item.text("name") for item in session.find(kind)[0]}


def _trace_options(parser: "Parser") -> None:
    parser.positional("instance", help="who sends")
    parser.positional("to", help="an address, or an instance")
    parser.positional("packet", help="tcp:80, udp:53, icmp")
    parser.option("-o", "--output", choices=("table", "json", "yaml"), default="table", help="table, json or yaml")


def _trace(options: "Options") -> int:
    from lamella.model.errors import Invalid
    from lamella.model.firewall_text import parse

    asked = parse(options.packet, field="packet")
    if asked.peer or len(asked.ports) > 1 or len(asked.types) > 1:
        raise Invalid(f"{options.packet!r} is more than one packet", hint="tcp:80, udp:53 or icmp", field="packet")
    session = Session(options)
    port = asked.ports[0].first if asked.ports else 0
    request = network_routes.trace(
        session.project, options.instance, options.to,
        protocol=asked.protocol.value, port=port, type=asked.types[0] if asked.types else 8,
    )  # fmt: skip
    found = session.ask(request)
    if options.output != "table":
        line(structured(found.value, options.output))
    else:
        for step in found.each("steps"):
            line(
                f"{'passes ' if step.flag('passes') else 'DROPPED'}  {clean(step.text('where')):<12}  {clean(step.text('because'))}"
            )
    return 0 if found.flag("passes") else 1


def _ports_options(parser: "Parser") -> None:
    parser.option("--network", metavar="NAME", help="of that network alone")
    parser.option("-q", "--quiet", action="store_true", help="names only")
    parser.output()


def _ports(options: "Options") -> int:
    session = Session(options)
    wanted = session.get("network", options.network).text("id") if options.network else ""
    found = [port for port in session.find("port")[0] if wanted in ("", port.text("spec", "network"))]
    networks = {**_names(_default(options), "network"), **_names(session, "network")}
    owners, guards = _names(session, "instance"), _names(session, "firewall")
    columns: list[Column] = [
        ("INSTANCE", lambda item: owners.get(item.text("spec", "owner"), item.text("spec", "owner"))),
        ("NETWORK", lambda item: networks.get(item.text("spec", "network"), item.text("spec", "network"))),
        ("ADDRESS", lambda item: _both(item.text("spec", "address"), item.text("spec", "address6"))),
        ("MAC", lambda item: item.text("spec", "mac")),
        (
            "FIREWALLS",
            lambda item: ", ".join(guards.get(each.string, each.string) for each in item.each("spec", "firewalls")),
        ),
        ("PUBLISHED", _published),
        NAME,
    ]
    show(found, "name" if options.quiet else options.output, columns)
    return 0


def _default(options: "Options") -> Session:
    session = Session(options)
    session.project = "default"
    return session


def _published(port: Document) -> str:
    return ", ".join(
        f"{item.integer('host_port') or 'any'}:{item.integer('port')}/{item.text('protocol')}"
        for item in port.each("spec", "publish")
    )


PORT: "list[Column]" = [
    NAME,
    ("NETWORK", lambda item: item.text("spec", "network")),
    ("ADDRESS", lambda item: _both(item.text("spec", "address"), item.text("spec", "address6"))),
    ("MAC", lambda item: item.text("spec", "mac")),
    ("OWNER", lambda item: item.text("spec", "owner")),
]

COMMANDS: "dict[str, Command]" = {
    **both("network", COLUMNS),
    **both("port", PORT),
    "network show": (_show_options, _show),
    "network create": (_create_options, _create),
    "network set": (_set_options, _set),
    "network rm": (_rm_options, _rm),
    "network trace": (_trace_options, _trace),
    **capture.COMMANDS,
    "port ls": (_ports_options, _ports),
}
