"""What is printed: tables for people, documents for programs. Nothing that came from outside reaches the terminal raw."""

import sys

from lamella.cli.document import Document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Column = tuple[str, Callable[[Document], str]]

FORMATS = ("table", "json", "yaml", "name")


def clean(text: str) -> str:
    """*text* without what a terminal would obey: control characters are shown as ``\\xNN``, line ends as spaces."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if character in "\n\r\t":
        return " "
    return character.encode("unicode_escape", "surrogatepass").decode()


def line(text: str = "") -> None:
    """One line on standard output, whatever characters it has."""
    try:
        sys.stdout.write(text + "\n")
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def width(text: str) -> int:
    """Columns that *text* takes on a terminal: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(mark) else 2 if east_asian_width(mark) in "WF" else 1 for mark in text)


def table(headings: "Sequence[str]", rows: "Iterable[Sequence[str]]") -> "list[str]":
    """Lines with the columns aligned, two spaces apart; the last one is not padded."""
    cells = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(width(row[index]) for row in cells) for index in range(len(headings))]
    return [
        "  ".join(cell + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def show(documents: "Sequence[Document]", form: str, columns: "Sequence[Column]", *, one: bool = False) -> None:
    """*documents* on standard output in *form*, one of ``FORMATS``; with *one* the only document stands by itself."""
    if form == "name":
        for document in documents:
            line(clean(document.text("name")))
    elif form == "table":
        rows = [[read(document) for _, read in columns] for document in documents]
        for text in table([heading for heading, _ in columns], rows):
            line(text)
    else:
        values = [document.value for document in documents]
        line(structured(values[0] if one else values, form))


def structured(value: object, form: str) -> str:
    """*value* as ``json`` or ``yaml``."""
    if form == "yaml":
        import yaml

        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n")
    import json

    return json.dumps(value, indent=2, ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf"))
