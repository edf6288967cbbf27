"""``start``, ``stop``, ``restart``, ``reset``, ``kill``, ``pause``, ``suspend``, ``resume`` and ``rm``: one verb, several names."""

from lamella.cli.document import render
from lamella.cli.each import each
from lamella.cli.run import failed
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lamella.cli.each import Verb
    from lamella.cli.parser import Command, Options, Parser

_WAIT = 300.0


def _each(options: "Options", doing: str, verb: "Verb") -> int:
    return each(options, doing, verb, failed)


def _names(parser: "Parser") -> None:
    parser.positional("name", nargs="+", help="names or ids")


def _power(verb: str, doing: str) -> "Callable[[Options], int]":
    def act(options: "Options") -> int:
        return _each(
            options,
            doing,
            lambda session, name: session.ask(routes.instance_verb(session.project, name, verb, wait=_WAIT)),
        )

    return act


def _timed(verb: str, doing: str) -> "Callable[[Options], int]":
    def act(options: "Options") -> int:
        body: dict[str, object] = {}
        wait = _WAIT
        if options.time is not None:
            from lamella.model.quantity import parse_duration

            body["timeout"] = parse_duration(options.time, field="time")
            wait = min(3600.0, wait + parse_duration(options.time))
        return _each(
            options,
            doing,
            lambda session, name: session.ask(
                routes.instance_verb(session.project, name, verb, body=render(body) if body else None, wait=wait)
            ),
        )

    return act


def _timed_options(parser: "Parser") -> None:
    _names(parser)
    parser.option("-t", "--time", metavar="TIME", help="until force: 10s (default: the instance's own)")


def _reset(options: "Options") -> int:
    return _each(
        options,
        "resetting",
        lambda session, name: session.ask(routes.instance_verb(session.project, name, "reset")),
    )


def _kill_options(parser: "Parser") -> None:
    _names(parser)
    parser.option("-s", "--signal", default="KILL", help="by name or number (default: KILL)")


def _kill(options: "Options") -> int:
    signal: str = options.signal
    body = render({"signal": signal.upper()})
    return _each(
        options,
        "killing",
        lambda session, name: session.ask(routes.instance_verb(session.project, name, "kill", body=body)),
    )


def _rm_options(parser: "Parser") -> None:
    _names(parser)
    parser.option("-f", "--force", action="store_true", help="stop it first")


def _rm(options: "Options") -> int:
    return _each(
        options,
        "removing",
        lambda session, name: session.ask(
            routes.remove(session.project, "instance", name, force=options.force, wait=_WAIT)
        ),
    )


COMMANDS: "dict[str, Command]" = {
    "start": (_names, _power("start", "starting")),
    "stop": (_timed_options, _timed("stop", "stopping")),
    "restart": (_timed_options, _timed("restart", "restarting")),
    "pause": (_names, _power("pause", "pausing")),
    "suspend": (_names, _power("suspend", "suspending")),
    "resume": (_names, _power("resume", "resuming")),
    "reset": (_names, _reset),
    "kill": (_kill_options, _kill),
    "rm": (_rm_options, _rm),
}
