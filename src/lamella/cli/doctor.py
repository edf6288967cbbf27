"""``doctor`` and ``version``: what this layer can do here, and who is speaking."""

import os
import sys

from lamella.cli import output
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Command, Options, Parser

_FORMATS = ("table", "json", "yaml")
_COLOURS = {"ok": "32", "note": "36", "warning": "33", "problem": "31"}


def _options(parser: "Parser") -> None:
    parser.option("-o", "--output", choices=_FORMATS, default="table", help="table, json or yaml")


def paint(text: str, level: str) -> str:
    """*text* in the colour of *level*, on a terminal and without NO_COLOR (https://no-color.org)."""
    colour = _COLOURS.get(level)
    if colour is None or os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def _doctor(options: "Options") -> int:
    with Progress("looking at this host"):
        diagnosis = Session(options).ask(routes.doctor())
    findings = list(diagnosis.each("findings"))
    code = 1 if any(finding.text("level") == "problem" for finding in findings) else 0
    if options.output != "table":
        line(output.structured(diagnosis.value, options.output))
        return code
    size = max((output.width(clean(finding.text("subject"))) for finding in findings), default=0)
    for finding in findings:
        level, subject = clean(finding.text("level")), clean(finding.text("subject"))
        line(f"{paint(f'{level:<8}', level)} {subject:<{size}}  {clean(finding.text('message'))}")
        if finding.text("hint"):
            line(f"{'':<8} {'':<{size}}  -> {clean(finding.text('hint'))}")
    return code


def _version(options: "Options") -> int:
    from lamella.model.errors import LamellaError
    from lamella.version import __version__

    about = None
    failure = None
    try:
        about = Session(options).ask(routes.about())
    except LamellaError as error:
        failure = error
    if options.output != "table":
        line(output.structured({"client": __version__, "daemon": about.value if about else None}, options.output))
        return 0
    line(f"lamella   {__version__}")
    if about is not None:
        line(
            f"lamellad  {clean(about.text('version'))} ({clean(about.text('role'))}); you are {clean(about.text('you'))}"
        )
    else:
        line(f"lamellad  not reached: {clean(failure.message if failure else '')}")
    return 0


COMMANDS: "dict[str, Command]" = {"doctor": (_options, _doctor), "version": (_options, _version)}
