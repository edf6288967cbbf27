"""``balancer``: one address before many instances."""

from lamella.cli.document import Document, render
from lamella.cli.each import each
from lamella.cli.nouns import CREATED, NAME, both
from lamella.cli.output import clean, line, show, table
from lamella.cli.session import Session
from lamella.client import network_routes, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]

_TO = "whom it leads to: label:role=web:8080, w1:8080; without a port, the listener's (repeat)"
_LISTEN = "what it listens to: tcp:80, udp:53, http:80, https:443 (repeat)"
_ROUTE = "whom requests lead to: /api=label:role=api:8080, www.example=w1 (repeat)"
_CHECK = "how it is told that a backend lives: tcp (the default), http:/healthz, none"


def _states(item: Document) -> "list[tuple[str, Document]]":
    """(host, what it saw of a backend)."""
    return [(host, state) for host, states in item.pairs("status", "backends") for state in states.each()]


def _up(item: Document) -> str:
    states = [state.text("state") for _, state in _states(item)]
    return f"{states.count('up')}/{len(states)}"


def _listens(item: Document) -> str:
    return ", ".join(f"{one.text('protocol')}:{one.integer('port')}" for one in item.each("spec", "listeners"))


def _published(item: Document) -> str:
    return ", ".join(
        f"{one.text('host_address') or '0.0.0.0'}:{one.integer('host_port')}->{one.integer('port')}/{one.text('protocol') or 'tcp'}"
        for one in item.each("spec", "publish")
    )


COLUMNS: "list[Column]" = [
    NAME,
    ("ADDRESS", lambda item: item.text("spec", "address")),
    ("LISTENS", _listens),
    ("PUBLISHED", _published),
    ("UP", _up),
    CREATED,
]


def _options(parser: "Parser") -> None:
    parser.option("--listen", action="append", metavar="WHAT", help=_LISTEN)
    parser.option("--to", action="append", metavar="WHOM", help=_TO)
    parser.option("--route", action="append", metavar="WHERE=WHOM", help=_ROUTE)
    parser.option(
        "--certificate", metavar="FILE", help="certificate and private key in PEM, a file of the host, for https"
    )
    parser.option("--check", metavar="HOW", help=_CHECK)
    parser.option("--check-port", type=int, metavar="PORT", help="where to check (default: where the backend serves)")
    parser.option(
        "--interval", type=float, metavar="SECONDS", help="between two checks (default: 0.7; 2 failures count)"
    )
    parser.option("--spread", choices=("turn", "source"), help="each in turn (the default), or by the client's address")
    parser.option("--publish", action="append", metavar="HOST:PORT", help="a port of the host: 8080:80 (repeat)")
    parser.option("--drain", type=float, metavar="SECONDS", help="how long a backend that leaves may keep connections")


def _asked(options: "Options", check: "Json | None" = None) -> "Json":
    """What was said of it, as fields of its spec."""
    import msgspec

    from lamella.cli.spec import publish
    from lamella.model import balancer_text

    found: Json = {}
    if options.listen is not None:
        found["listeners"] = [msgspec.to_builtins(balancer_text.listener(text)) for text in options.listen]
    if options.to is not None or options.route is not None:
        given: list[str] = options.to or []
        ways: list[str] = options.route or []
        wanted = [text for text in given if text != "none"]
        targets = [*map(balancer_text.route, ways), *map(balancer_text.target, wanted)]
        found["targets"] = [msgspec.to_builtins(target) for target in targets]
    if options.certificate is not None:
        found["certificate"] = options.certificate
    changed: Json = {}
    if options.check is not None:
        how = balancer_text.check(options.check)
        changed |= {"kind": how.kind, "path": how.path}
    if options.check_port is not None:
        changed["port"] = options.check_port
    if options.interval is not None:
        changed |= {"interval": options.interval, "timeout": options.interval}
    if changed:
        found["check"] = {**(check or {}), **changed}
    if options.spread is not None:
        found["spread"] = options.spread
    if options.publish is not None:
        found["publish"] = [publish(text) for text in options.publish if text != "none"]
    if options.drain is not None:
        found["drain"] = options.drain
    return found


def _create_options(parser: "Parser") -> None:
    parser.positional("name", help="what it will be called")
    parser.option(
        "--network", default="default", metavar="NAME", help="where it and its backends are (default: default)"
    )
    parser.option("--address", default="", metavar="ADDRESS", help="one of the network's (default: a free one)")
    _options(parser)
    parser.option("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label")


def _create(options: "Options") -> int:
    from lamella.cli.spec import labels
    from lamella.model.errors import Invalid

    if not options.listen:
        raise Invalid("a balancer listens to something", hint="say what: --listen tcp:80", field="listen")
    session = Session(options)
    asked: Json = {
        "name": options.name,
        "labels": labels(options.label),
        "network": options.network,
        "address": options.address,
        **_asked(options),
    }
    made = session.ask(network_routes.create_balancer(session.project, render(asked)))
    line(clean(made.text("name")))
    return 0


def _set_options(parser: "Parser") -> None:
    parser.positional("name", help="the balancer; what is said of listeners, targets and ports replaces what was")
    _options(parser)
    parser.option(
        "--drain-backend", action="append", default=[], metavar="NAME", help="give this one no new connection"
    )
    parser.option("--undrain-backend", action="append", default=[], metavar="NAME", help="give it some again")
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )


def _set(options: "Options") -> int:
    from lamella.cli.spec import label_changes
    from lamella.model.errors import Invalid

    session = Session(options)
    spec = _asked(options)
    if options.drain_backend or options.undrain_backend:
        now = {item.string for item in session.get("balancer", options.name).each("spec", "draining")}
        spec["draining"] = sorted((now | set(options.drain_backend)) - set(options.undrain_backend))
    asked: Json = {"spec": spec} if spec else {}
    if options.label:
        asked["labels"] = label_changes(options.label)
    if not asked:
        raise Invalid("there is nothing to change", hint="say what: --to label:role=web, --drain-backend w1")
    session.ask(routes.patch(session.project, "balancer", options.name, render(asked)))
    line(clean(options.name))
    return 0


def _rm_options(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names of balancers")


def _rm(options: "Options") -> int:
    return each(
        options, "removing", lambda session, name: session.ask(routes.remove(session.project, "balancer", name))
    )


def _show_options(parser: "Parser") -> None:
    parser.positional("name", help="its name or id")
    parser.output()


def _show(options: "Options") -> int:
    import msgspec

    from lamella.model.balancer import Check, Target
    from lamella.model.balancer_text import format_check, format_target

    session = Session(options)
    found = session.get("balancer", options.name)
    if options.output != "table":
        show([found], options.output, COLUMNS, one=True)
        return 0
    networks = {item.text("id"): item.text("name") for item in session.find("network")[0]}
    network = found.text("spec", "network")
    line(f"balancer {clean(found.text('name'))} ({clean(found.text('id'))})")
    line(f"  at       {clean(found.text('spec', 'address'))} on network {clean(networks.get(network, network))}")
    line(f"  listens  {clean(_listens(found))}")
    if published := _published(found):
        line(f"  host     {clean(published)}")
    for target in found.each("spec", "targets"):
        line(f"  to       {clean(format_target(msgspec.convert(target.value, Target)))}")
    check = msgspec.convert(found.at("spec", "check"), Check)
    line(f"  check    {clean(format_check(check))} every {check.interval:g} s, out after {check.fall} failures")
    for _, conditions in found.pairs("status", "conditions"):
        for condition in conditions.each():
            if not condition.flag("status"):
                line(f"  trouble  {clean(condition.text('message'))}")
    rows = [
        (
            state.text("instance"),
            f"{state.text('address')}:{state.integer('port')}",
            state.text("state"),
            state.text("reason"),
        )
        for _, state in _states(found)
    ]
    for text in table(("BACKEND", "ADDRESS", "STATE", "WHY"), rows) if rows else []:
        line(text)
    return 0


COMMANDS: "dict[str, Command]" = {
    **both("balancer", COLUMNS),
    "balancer show": (_show_options, _show),
    "balancer create": (_create_options, _create),
    "balancer set": (_set_options, _set),
    "balancer rm": (_rm_options, _rm),
}
