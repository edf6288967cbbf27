"""XML from a stranger as a small tree: no document type, so no entity of its own and nothing fetched; bounded in every direction.

Expat, as the standard library has it, with handlers of our own: a DOCTYPE ends the parsing where it begins.
"""

from collections.abc import Iterator
from xml.parsers import expat

import msgspec

from lamella.model.errors import Corrupt

LARGEST = 4 << 20
_DEEPEST = 64
_MOST = 100_000


class Element(msgspec.Struct):
    """``name`` and the keys of ``attributes`` are local names: what namespace they are of is for nobody here."""

    name: str
    attributes: dict[str, str]
    text: str = ""
    children: list["Element"] = []

    def all(self, name: str) -> Iterator["Element"]:
        """Children of that name."""
        return (child for child in self.children if child.name == name)

    def first(self, name: str) -> "Element | None":
        return next(self.all(name), None)

    def value(self, name: str) -> str:
        """Text of the first child of that name; empty without one."""
        found = self.first(name)
        return found.text.strip() if found else ""

    def every(self, name: str) -> Iterator["Element"]:
        """Elements of that name at any depth below."""
        for child in self.children:
            if child.name == name:
                yield child
            yield from child.every(name)


def parse(data: bytes, what: str) -> Element:
    """The root element of *data*, which errors call *what*.

    :raise Corrupt: when it is not well-formed, has a document type, or is beyond what a description of a machine needs.
    """
    top = Element("", {})
    open_elements = [top]
    count = 0

    def refuse(*_: object) -> None:
        raise Corrupt(f"{what} has a document type", hint="OVF has none: it would name entities, and these files")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > _MOST or len(open_elements) > _DEEPEST:
            raise Corrupt(f"{what} has too many elements", hint="no honest description of a machine is so long")
        element = Element(_local(name), {_local(key): value for key, value in attributes.items()})
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_name: str) -> None:
        open_elements.pop()

    def text(piece: str) -> None:
        open_elements[-1].text += piece

    if len(data) > LARGEST:
        raise Corrupt(f"{what} is {len(data)} bytes", hint="no honest description of a machine is so long")
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse  # pyright: ignore[reportAttributeAccessIssue]
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, UnicodeError, LookupError, ValueError) as error:
        raise Corrupt(f"{what} is not well-formed: {error}", hint="export the machine again") from error
    return top.children[0]


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
