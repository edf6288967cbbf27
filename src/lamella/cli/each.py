"""One verb, several names: each is tried, and what fails for one is said and does not keep the others."""

import sys

from lamella.cli.document import Document
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lamella.cli.parser import Options

    Verb = Callable[[Session, str], Document]


def each(options: "Options", doing: str, verb: "Verb", failed: "Callable[[Document], int]" = lambda after: 0) -> int:
    """Do *verb* to every name and print those that went well; *failed* says of what was answered that it did not."""
    from lamella.model.errors import LamellaError

    session = Session(options)
    names: list[str] = options.name
    code = 0
    for name in dict.fromkeys(names):
        try:
            with Progress(f"{doing} {clean(name)}"):
                after = verb(session, name)
        except LamellaError as error:
            if len(names) == 1:
                raise
            code = 1
            sys.stdout.flush()
            sys.stderr.write(f"lamella: {clean(error.message)}\n" + (f"  {clean(error.hint)}\n" if error.hint else ""))
            continue
        if failed(after):
            code = 1
            continue
        line(clean(name))
    return code
