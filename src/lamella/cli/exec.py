"""``exec`` and ``shell``: another process in a running instance."""

import os
import sys

from lamella.cli.session import Session
from lamella.cli.spec import variables
from lamella.client import routes
from lamella.client.msgpack import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Command, Options, Parser

# One round trip for both: bash when it is there, else sh.
_SHELL = ["/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l"]


def _where(parser: "Parser") -> None:
    parser.option(
        "-e", "--env", action="append", default=[], metavar="KEY[=VALUE]", help="set a variable, or pass yours on"
    )
    parser.option("--env-file", action="append", default=[], metavar="FILE", help="lines of KEY=VALUE")
    parser.option("-w", "--workdir", metavar="DIR", help="working directory")
    parser.option("-u", "--user", metavar="USER[:GROUP]", help="name or number, resolved inside")


def _exec_options(parser: "Parser") -> None:
    parser.rest_after = 1
    parser.positional("name", help="NAME [--] COMMAND ...: the instance, and what to run in it")
    parser.option("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.option("-t", "--tty", action="store_true", help="give it a terminal")
    parser.option("--timeout", metavar="TIME", help="kill it after this long, and exit 124: 30s, 5m")
    _where(parser)


def _invalid(message: str, hint: str, field: str) -> Exception:
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint, field=field)


def _exec(options: "Options") -> int:

    if not options.rest:
        raise _invalid("there is no command to run", f"lamella exec {options.name} -- COMMAND ...", "command")
    if options.tty and options.interactive and not sys.stdin.isatty():
        raise _invalid("standard input is no terminal", "leave out -t to pass a file or a pipe on", "tty")
    return _follow(options, options.rest, terminal=options.tty, stdin=options.interactive, timeout=options.timeout)


def _shell_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    _where(parser)


def _shell(options: "Options") -> int:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return _follow(options, _SHELL, terminal=terminal, stdin=True, timeout=None)


def _follow(options: "Options", command: "list[str]", *, terminal: bool, stdin: bool, timeout: "str | None") -> int:
    from lamella.cli.pump import Pump, window

    environment = variables(options.env, options.env_file)
    if terminal:
        environment.setdefault("TERM", os.environ.get("TERM") or "xterm")
    spec: dict[str, object] = {"command": command, "environment": environment, "terminal": terminal, "stdin": stdin}
    if options.workdir is not None:
        spec["working_directory"] = options.workdir
    if options.user is not None:
        spec["user"] = options.user
    if timeout is not None:
        from lamella.model.quantity import parse_duration

        spec["timeout"] = parse_duration(timeout, field="timeout")
    size = window() if terminal else None
    if size is not None:
        spec["rows"], spec["columns"] = size
    session = Session(options)
    channel = session.wire.channel(routes.exec_stream(session.project, options.name))
    try:
        channel.send(pack(spec))
        return Pump(channel, terminal=terminal, stdin=stdin).run()
    finally:
        channel.close()


COMMANDS: "dict[str, Command]" = {"exec": (_exec_options, _exec), "shell": (_shell_options, _shell)}
