"""``firewall``: what may come in to instances, and what may go out of them."""

from lamella.cli.document import Document, render
from lamella.cli.each import each
from lamella.cli.nouns import CREATED, NAME, both
from lamella.cli.output import clean, line, show
from lamella.cli.session import Session
from lamella.client import network_routes, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Act, Command, Options, Parser

    Json = dict[str, object]

COLUMNS: "list[Column]" = [
    NAME,
    ("IN", lambda item: str(len(list(item.each("spec", "inbound"))))),
    (
        "OUT",
        lambda item: "all" if item.at("spec", "outbound") is None else str(len(list(item.each("spec", "outbound")))),
    ),
    CREATED,
]


def _rule_options(parser: "Parser") -> None:
    parser.option(
        "--allow",
        action="append",
        metavar="RULE",
        help="what may come in: tcp:80,443, icmp, any, from=10.0.0.0/8:tcp:22, from=firewall:NAME:tcp:5432 (repeat)",
    )
    parser.option("--allow-out", action="append", metavar="RULE", help="what alone may go out (to=…; default: all)")


def _rules(options: "Options") -> "Json":
    """What was said of rules."""
    from lamella.model.firewall_text import parse

    found: Json = {}
    for name, texts, field in (("inbound", options.allow, "allow"), ("outbound", options.allow_out, "allow-out")):
        if texts is not None:
            wanted: list[str] = [text for text in texts if text != "none"]
            found[name] = [_plain(parse(text, field=field)) for text in wanted]
    return found


def _plain(rule: object) -> object:
    import msgspec

    return msgspec.to_builtins(rule)


def _create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    _rule_options(parser)
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels

    session = Session(options)
    asked = {"name": options.name, "labels": labels(options.label), **_rules(options)}
    made = session.ask(network_routes.create_firewall(session.project, render(asked)))
    line(clean(made.text("name")))
    return 0


def _set_options(parser: "Parser") -> None:
    parser.positional("name", help="the firewall; its rules of that direction become these (none: no rule)")
    _rule_options(parser)
    parser.option("--allow-all-out", action="store_true", help="everything may go out again")
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )


def _set(options: "Options") -> int:
    from lamella.cli.spec import label_changes
    from lamella.model.errors import Invalid

    spec: Json = _rules(options)
    if options.allow_all_out:
        spec["outbound"] = None
    asked: Json = {"spec": spec} if spec else {}
    if options.label:
        asked["labels"] = label_changes(options.label)
    if not asked:
        raise Invalid("there is nothing to change", hint="say what: --allow tcp:80, --label KEY=VALUE")
    session = Session(options)
    session.ask(routes.patch(session.project, "firewall", options.name, render(asked)))
    line(clean(options.name))
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of firewalls that guard nobody")


def _rm(options: "Options") -> int:
    return each(
        options, "removing", lambda session, name: session.ask(routes.remove(session.project, "firewall", name))
    )


def _show_options(parser: "Parser") -> None:
    parser.positional("name", help="its name or id")
    parser.output()


def _show(options: "Options") -> int:
    session = Session(options)
    found = session.get("firewall", options.name)
    if options.output != "table":
        show([found], options.output, COLUMNS, one=True)
        return 0
    names = {item.text("id"): item.text("name") for item in session.find("firewall")[0]}
    line(f"firewall {clean(found.text('name'))} ({clean(found.text('id'))})")
    for text in _lines(found, "inbound", names):
        line(f"  in   {text}")
    if found.at("spec", "outbound") is None:
        line("  out  everything")
    for text in _lines(found, "outbound", names):
        line(f"  out  {text}")
    owners = {item.text("id"): item.text("name") for item in session.find("instance")[0]}
    for port in session.find("port")[0]:
        if any(item.string == found.text("id") for item in port.each("spec", "firewalls")):
            owner = port.text("spec", "owner")
            line(f"  guards {clean(owners.get(owner, owner))} at {clean(port.text('spec', 'address'))}")
    return 0


def _lines(firewall: Document, direction: str, names: "dict[str, str]") -> "list[str]":
    """The rules as people write them, with names for ids."""
    import msgspec

    from lamella.model.firewall import FIREWALL, Rule
    from lamella.model.firewall_text import format

    found: list[str] = []
    for item in firewall.each("spec", direction):
        rule = msgspec.convert(item.value, Rule)
        if rule.peer.startswith(FIREWALL):
            id = rule.peer.removeprefix(FIREWALL)
            rule = msgspec.structs.replace(rule, peer=FIREWALL + names.get(id, id))
        found.append(format(rule, outward=direction == "outbound"))
    return found


def _member_options(parser: "Parser") -> None:
    parser.positional("name", help="the firewall")
    parser.positional("instance", help="whose ports it guards")


def _member(verb: str) -> "Act":
    def act(options: "Options") -> int:
        session = Session(options)
        body = render({"instance": options.instance})
        session.ask(network_routes.member(session.project, options.name, verb, body))
        line(clean(options.instance))
        return 0

    return act


def _default_options(parser: "Parser") -> None:
    parser.positional("name", nargs="?", default="", help="the firewall of every new instance that names none")
    parser.option("--none", action="store_true", help="none from now on")


def _default(options: "Options") -> int:
    from lamella.model.errors import Invalid

    session = Session(options)
    if options.name and options.none:
        raise Invalid("a firewall was named, and --none", hint="one of the two")
    if options.name or options.none:
        session.ask(network_routes.default_firewall(session.project, render({"firewall": options.name})))
        line(clean(options.name or "none"))
        return 0
    chosen = session.get("project", session.project).text("spec", "firewall")
    names = {item.text("id"): item.text("name") for item in session.find("firewall")[0]}
    line(clean(names.get(chosen, chosen) or "none"))
    return 0


COMMANDS: "dict[str, Command]" = {
    **both("firewall", COLUMNS),
    "firewall show": (_show_options, _show),
    "firewall create": (_create_options, _create),
    "firewall set": (_set_options, _set),
    "firewall attach": (_member_options, _member("attach")),
    "firewall detach": (_member_options, _member("detach")),
    "firewall default": (_default_options, _default),
    "firewall rm": (_rm_options, _rm),
}
