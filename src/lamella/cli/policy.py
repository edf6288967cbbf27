"""``host set``: how far a host is promised, what stays its own, and what its instances share."""

from lamella.cli.document import Document, render
from lamella.cli.output import clean, line
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Command, Options, Parser

    Json = dict[str, object]

UNSET = "unset"


def _set_options(parser: "Parser") -> None:
    parser.positional("name", nargs="?", help="its name or id; the only one there is, when none is given")
    parser.option(
        "--overcommit", metavar="cpu=4,memory=1.5", help="how often its cpu and memory are promised as ceilings"
    )
    parser.option("--reserve", metavar="cpu=0.5,memory=1GiB", help="what stays its own: no instance is guaranteed it")
    parser.option(
        "--ksm",
        choices=("off", "same-project", "all", UNSET),
        help="whose equal pages become one; unset leaves it as the host had it",
    )
    parser.option(
        "--huge-pages",
        "--hugepages",
        metavar="2MiB=512",
        help="pages set apart for --huge-pages; unset gives them back as the host had them",
    )
    parser.option(
        "--copies",
        choices=("off", "same-project", "all"),
        help="which machines may begin as copies of one that booted before, and share its memory's pages",
    )
    parser.option(
        "-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="set a label; KEY- removes it"
    )


def _set(options: "Options") -> int:
    from lamella.cli.spec import label_changes
    from lamella.model.errors import Conflict, Invalid

    spec: Json = asked(options)
    body: Json = {"spec": spec} if spec else {}
    if options.label:
        body["labels"] = label_changes(options.label)
    if not body:
        raise Invalid(
            "there is nothing to change",
            hint="say what: --overcommit, --reserve, --ksm, --copies, --huge-pages, --label",
        )
    session = Session(options)
    name = options.name
    if not name:
        hosts, _ = session.find("host", {})
        if len(hosts) != 1:
            raise Conflict(f"there are {len(hosts)} hosts", hint="lamella host set NAME …")
        name = hosts[0].text("name")
    session.ask(routes.patch(session.project, "host", name, render(body)))
    line(clean(name))
    return 0


def asked(options: "Options") -> "Json":
    """The change of the spec that the options ask for.

    :raise Invalid: when one of them is not understood.
    """
    from lamella.model.quantity import parse_cpu, parse_size

    found: Json = {}
    if options.overcommit is not None:
        found["overcommit"] = {
            key: _ratio(text) for key, text in _pairs(options.overcommit, "overcommit", ("cpu", "memory")).items()
        }
    if options.reserve is not None:
        pairs = _pairs(options.reserve, "reserve", ("cpu", "memory"))
        found["reserve"] = {
            key: 0 if text == "0" else parse_cpu(text) if key == "cpu" else parse_size(text, field="reserve")
            for key, text in pairs.items()
        }
    if options.ksm is not None:
        found["ksm"] = None if options.ksm == UNSET else options.ksm
    if options.copies is not None:
        found["copies"] = options.copies
    if options.huge_pages is not None:
        found["huge_pages"] = None if options.huge_pages == UNSET else _pages(options.huge_pages)
    return found


def _pairs(text: str, field: str, keys: "tuple[str, ...]") -> "dict[str, str]":
    from lamella.model.errors import Invalid

    found: dict[str, str] = {}
    for word in text.split(","):
        key, equals, value = word.strip().partition("=")
        if not equals or not value or (keys and key not in keys) or key in found:
            raise Invalid(
                f"{word.strip()!r} does not belong into --{field.replace('_', '-')}",
                hint=f"write {' and '.join(f'{name}=…' for name in keys)}, with a comma between them",
                field=field,
            )
        found[key] = value
    return found


def _ratio(text: str) -> float:
    from lamella.model.errors import Invalid

    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 1 <= ratio <= 1000:
        raise Invalid(
            f"{text!r} is not how often something can be promised", hint="1 or more: 1.5, 4", field="overcommit"
        )
    return ratio


def _pages(text: str) -> "dict[str, int]":
    from lamella.model.errors import Invalid
    from lamella.model.quantity import format_size, parse_size

    found: dict[str, int] = {}
    for word in text.split(","):
        size, _, count = word.strip().partition("=")
        if not (count.isascii() and count.isdigit()) or len(count) > 9:
            raise Invalid(
                f"{word.strip()!r} is not a number of huge pages", hint="write it like 2MiB=512", field="huge-pages"
            )
        found[format_size(parse_size(size, field="huge-pages"))] = int(count)
    return found


def figures(host: Document) -> "list[str]":
    """What instances of the host share, in lines for a person; nothing when the host has not told."""
    from lamella.model.quantity import format_size

    told = host.at("status", "sharing")
    if told is None:
        return []
    sharing = Document(told)

    def size(name: str) -> str:
        return format_size(sharing.integer(name) or 0)

    alone, together = sharing.integer("alone") or 0, sharing.integer("together") or 0
    count = sharing.integer("instances") or 0
    lines = [
        f"consolidation: {count} instance{'s' * (count != 1)} in {size('together')} of memory; alone they would take {size('alone')}"
        + (f" ({alone / together:.2f} times as much)" if together else "")
    ]
    projects = [clean(item.string) for item in sharing.each("projects")]
    lines.append(
        f"equal pages (KSM): {clean(sharing.text('ksm'))}"
        + (f", {size('merged')} are in merged pages" if sharing.integer("merged") else "")
        + (f"; machines of {', '.join(projects)} take part" if projects else "")
    )
    lines += [f"not as asked: {clean(item.string)}" for item in sharing.each("refused")]
    return lines


COMMANDS: "dict[str, Command]" = {"host set": (_set_options, _set)}
