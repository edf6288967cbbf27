"""``events``: what happened, and with ``--follow`` what happens."""

import sys

from lamella.cli import output, when
from lamella.cli.output import clean, line
from lamella.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

COLUMNS: "list[Column]" = [
    ("WHEN", lambda item: when.local(item.text("created_at"))),
    ("TYPE", lambda item: item.text("spec", "type")),
    ("SUBJECT", lambda item: item.text("spec", "subject_name")),
    ("MESSAGE", lambda item: item.text("spec", "message")),
]


def _options(parser: "Parser") -> None:
    parser.option("-f", "--follow", action="store_true", help="go on with what happens from now on")
    parser.option("--type", metavar="TYPE", help="only these: contract.broken, or all of one kind: contract")
    parser.option("-n", "--tail", type=int, default=None, metavar="N", help="only the newest N")
    parser.output()


def _events(options: "Options") -> int:
    session = Session(options)
    past, revision = session.find("event")
    past.sort(key=lambda item: (item.text("created_at"), item.text("id")))
    past = [event for event in past if _of_type(event, options.type)]
    if options.tail is not None:
        past = past[max(0, len(past) - options.tail) :]
    if not options.follow:
        output.show(past, options.output, COLUMNS)
        return 0
    for event in past:
        _one(event, options.output)
    sys.stdout.flush()
    for action, event in session.watch("event", revision):
        if action == "created" and _of_type(event, options.type):
            _one(event, options.output)
            sys.stdout.flush()
    return 0


def _of_type(event: "Document", wanted: "str | None") -> bool:
    found = event.text("spec", "type")
    return wanted is None or found == wanted or found.startswith(f"{wanted}.")


def _one(event: "Document", form: str) -> None:
    """One event on one line: a table that goes on cannot know its widths."""
    if form == "json":
        import json

        line(json.dumps(event.value))
    elif form == "yaml":
        line(f"---\n{output.structured(event.value, 'yaml')}")
    elif form == "name":
        line(clean(event.text("name")))
    else:
        texts = [clean(read(event)) for _, read in COLUMNS]
        line(f"{texts[0]}  {texts[1]:<22}  {texts[2]:<24}  {texts[3]}".rstrip())


COMMANDS: "dict[str, Command]" = {"events": (_options, _events)}
