"""``--rate-in`` and ``--rate-out``: how much an instance's network carries."""

from lamella.cli.document import render
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.parser import Options, Parser
    from lamella.cli.session import Session

    Json = dict[str, object]

_TRIES = 5


def options(parser: "Parser") -> None:
    """Add both."""
    parser.option("--rate-in", metavar="RATE", help="ceiling of what its network brings: 100Mbit, 1Gbit; none")
    parser.option("--rate-out", metavar="RATE", help="ceiling of what it sends: 100Mbit, 1Gbit; none")


def asked(options: "Options") -> "Json":
    """What they ask for of a NIC; ``none`` takes a ceiling away.

    :raise Invalid: when one is no rate.
    """
    given: dict[str, str | None] = {"rate_in": options.rate_in, "rate_out": options.rate_out}
    made: Json = {}
    for field, text in given.items():
        if text is not None:
            from lamella.model.bit_rate import parse

            made[field] = None if text == "none" else parse(text, field=field.replace("_", "-"))
    return made


def change(session: "Session", options: "Options", changes: "Json", *, wait: float) -> None:
    """Patch the instance with *changes* and the rates of the NIC that the options name, anew when somebody else was quicker.

    :raise NotFound: when it has no such NIC. :raise Conflict: when it has none at all.
    """
    from lamella.model.errors import StaleRevision

    spec = changes.get("spec")
    known: Json = spec if isinstance(spec, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    for left in reversed(range(_TRIES)):
        read = session.get("instance", options.name)
        body = render({**changes, "spec": {**known, "nics": _nics(read, options)}})
        request = routes.patch(
            session.project, "instance", options.name, body, revision=read.integer("revision"), wait=wait
        )
        try:
            session.ask(request)
            return
        except StaleRevision:
            if not left:
                raise


def _nics(instance: "Document", options: "Options") -> "list[object]":
    """The list of its NICs, one of them with other rates: a list in a patch takes the place of the one that was there."""
    found: list[Document] = [*instance.each("spec", "nics")]
    wanted: str | None = options.nic
    names = [nic.text("name") if number else "nic" for number, nic in enumerate(found)]
    if not found:
        from lamella.model.errors import Conflict

        raise Conflict(f"{options.name} has no network", hint="rates are of a NIC")
    if wanted is not None and wanted not in names:
        from lamella.model.errors import NotFound

        raise NotFound(f"{options.name} has no NIC {wanted!r}", hint=f"it has {', '.join(names)}", field="nic")
    chosen = 0 if wanted is None else names.index(wanted)
    return [{**_fields(nic), **asked(options)} if number == chosen else nic.value for number, nic in enumerate(found)]


def _fields(document: "Document") -> "Json":
    value = document.value
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]
