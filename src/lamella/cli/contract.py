"""``contract`` and ``explain``: what is promised, and how it came to be so."""

from lamella.cli import output, when
from lamella.cli.output import clean, line
from lamella.cli.replication import seconds
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.output import Column
    from lamella.cli.parser import Command, Options, Parser

_FORMATS = ("table", "json", "yaml")


def _contract_options(parser: "Parser") -> None:
    parser.positional("name", nargs="*", help="the instance; with --compare the levels (default: all)")
    parser.option("--compare", action="store_true", help="what each isolation level promises, side by side")
    parser.option("-o", "--output", choices=_FORMATS, default="table", help="table, json or yaml")


def _explain_options(parser: "Parser") -> None:
    parser.positional("name", nargs="?", help="the instance")
    parser.option("--why-not", metavar="LEVEL", help="what an isolation level needs here, and what of it is missing")
    parser.option("-o", "--output", choices=_FORMATS, default="table", help="table, json or yaml")


def _unclear(message: str, hint: str) -> Exception:
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint, field="name")


def _section(title: str, rows: "list[list[str]]") -> None:
    if rows:
        line()
        line(title)
        for text in output.table([""] * len(rows[0]), rows)[1:]:
            line(f"  {text}")


def _contract(options: "Options") -> int:
    if options.compare:
        return _compare(options)
    if len(options.name) != 1:
        raise _unclear("a contract is one instance's", "lamella contract NAME; or lamella contract --compare")
    session = Session(options)
    contract = session.ask(routes.instance_page(session.project, options.name[0], "contract"))
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
    _section("What is kept a second time", [_replica(item) for item in contract.each("replicas")])
    _section("What limits it", [_row(item) for item in contract.each("limits")])
    _section("What it got", [*_got(contract, "guarantees", "guaranteed"), *_got(contract, "limits", "limit")])
    _section("What it cannot do", [[item.string] for item in contract.each("lacks")])
    _section("What is not promised", [[item.string] for item in contract.each("not_promised")])
    return 0


def _compare(options: "Options") -> int:
    comparison = Session(options).ask(routes.levels())
    if options.output != "table":
        line(output.structured(comparison.value, options.output))
        return 0
    known = [level.text("level") for level in comparison.each("levels")]
    absent = next((name for name in options.name if name not in known), None)
    if absent is not None:
        raise _unclear(f"there is no isolation level {absent!r}", f"one of: {', '.join(known)}")
    shown = options.name or known
    line("Isolation levels, the one that shares most with its host first")
    for text in output.table(
        [""] * 3,
        [
            [level.text("level"), "here" if level.flag("available") else "not here", level.text("what")]
            for level in comparison.each("levels")
            if level.text("level") in shown
        ],
    )[1:]:
        line(f"  {text}")
    for row in comparison.each("rows"):
        subject = clean(row.text("subject"))
        _section(subject[:1].upper() + subject[1:], alike([(name, row.text("values", name)) for name in shown]))
    _section("What no level promises", [[item.string] for item in comparison.each("not_promised")])
    line()
    line("`lamella explain --why-not LEVEL` says what a level lacks here.")
    return 0


def alike(values: "list[tuple[str, str]]") -> "list[list[str]]":
    """Rows of levels and what they say; those that say the same share one."""
    rows: dict[str, list[str]] = {}
    for name, value in values:
        rows.setdefault(value, []).append(name)
    return [[", ".join(names), value] for value, names in rows.items()]


def _replica(item: "Document") -> list[str]:
    achieved, every, worst = item.number("achieved"), item.number("every"), item.number("worst")
    if item.text("mode") == "sync":
        asked, seen = "sync: both have a write before it is acknowledged", ""
        if not item.flag("kept") and achieved is not None:
            seen = f"it may lack what was written in the last {seconds(achieved)}"
    else:
        asked = f"async, every {seconds(every)}: at most {seconds(item.number('promised'))} old"
        seen = f"is {seconds(achieved)} old, at most {seconds(worst)} in a day" if achieved is not None else ""
    return [
        "kept" if item.flag("kept") else "BROKEN",
        f"volume {item.text('volume')}",
        f"{item.text('replica')} in pool {item.text('pool')}",
        asked,
        ": ".join(part for part in (seen, item.text("why")) if part),
    ]


def _got(contract: "Document", member: str, kind: str) -> "list[list[str]]":
    """A row for each line that is judged: its verdict now, over each window, and the evidence of the first."""
    rows: list[list[str]] = []
    for item in contract.each(member):
        windows = list(item.each("windows"))
        if windows:
            verdict, since = item.text("verdict"), item.text("since")
            shown = verdict.upper() if verdict == "broken" else verdict
            rows.append(
                [
                    item.text("subject"),
                    kind,
                    f"{shown} since {when.local(since)}" if since else shown,
                    ", ".join(f"{window.text('window')} {window.text('verdict')}" for window in windows),
                    windows[0].text("evidence"),
                ]
            )
    return rows


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


def _why_not(options: "Options") -> int:
    answer = Session(options).ask(routes.why_not(options.why_not))
    if options.output != "table":
        line(output.structured(answer.value, options.output))
        return 0
    level = clean(answer.text("level"))
    line(f"{level} can be had here." if answer.flag("available") else f"{level} cannot be had here.")
    rows = [
        ["yes" if reason.flag("available") else "NO", *(reason.text(name) for name in ("host", "need", "reason"))]
        for reason in answer.each("reasons")
    ]
    _section("What it needs", rows)
    return 0


def _explain(options: "Options") -> int:
    if options.why_not is not None:
        if options.name is not None:
            raise _unclear("--why-not is about a level and not about an instance", "leave the instance out")
        return _why_not(options)
    if options.name is None:
        raise _unclear("it is not said what to explain", "lamella explain NAME; or lamella explain --why-not LEVEL")
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


COMMANDS: "dict[str, Command]" = {
    "contract": (_contract_options, _contract),
    "explain": (_explain_options, _explain),
}
