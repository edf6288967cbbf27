"""``contract`` and ``explain``: what is promised, and how it came to be so."""

from lamella.cli import output, when
from lamella.cli.output import clean, line
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

_FORMATS = ("table", "json", "yaml")


def _options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.option("-o", "--output", choices=_FORMATS, default="table", help="table, json or yaml")


def _section(title: str, rows: "list[list[str]]") -> None:
    if rows:
        line()
        line(title)
        for text in output.table([""] * len(rows[0]), rows)[1:]:
            line(f"  {text}")


def _contract(options: "Options") -> int:
    session = Session(options)
    contract = session.ask(routes.instance_page(session.project, options.name, "contract"))
    if options.output != "table":
        line(output.structured(contract.value, options.output))
        return 0
    line(f"Contract of {clean(contract.text('instance'))}, version {contract.integer('version') or 1}")
    read = f"read at {when.local(contract.text('read_at'))}" if contract.flag("observed") else "it does not run now"
    line(f"  level        {clean(contract.text('level'))}, by the driver {clean(contract.text('driver'))}; {read}")
    accelerator = contract.text("accelerator")
    if accelerator:
        reason = contract.text("accelerator_reason")
        line(f"  accelerator  {clean(accelerator)}{f': {clean(reason)}' if reason else ''}")
    _section(
        "What isolates it (read from the running thing)",
        [
            ["yes" if item.flag("in_force") else "NO", item.text("name"), item.text("value"), item.text("evidence")]
            for item in contract.each("isolation")
        ],
    )
    _section("What it is guaranteed", [_row(item) for item in contract.each("guarantees")])
    _section("What limits it", [_row(item) for item in contract.each("limits")])
    _section("What is not promised", [[item.string] for item in contract.each("not_promised")])
    return 0


def _row(item: "Document") -> list[str]:
    enforced = item.text("enforced_by")
    asked = item.text("asked")
    return [
        item.text("subject"),
        item.text("value"),
        f"by {enforced}" if enforced else "enforced by nothing",
        f"asked: {asked}" if asked else "",
    ]


DECISIONS: "list[Column]" = [
    ("WHEN", lambda item: when.local(item.text("at"))),
    ("WHAT", lambda item: item.text("what")),
    ("CHOSEN", lambda item: item.text("chosen")),
    ("BECAUSE", lambda item: item.text("because")),
]


def _explain(options: "Options") -> int:
    session = Session(options)
    explanation = session.ask(routes.instance_page(session.project, options.name, "explain"))
    if options.output != "table":
        line(output.structured(explanation.value, options.output))
        return 0
    output.show(list(explanation.each("decisions")), "table", DECISIONS)
    steps = [step.string for step in explanation.each("next_steps")]
    line()
    line("Next: nothing, it is as it should be." if not steps else "Next:")
    for step in steps:
        line(f"  {clean(step)}")
    return 0


COMMANDS: "dict[str, Command]" = {"contract": (_options, _contract), "explain": (_options, _explain)}
