"""What the instances of a host have of its memory, and what they would take alone: the saving as a number."""

import msgspec


class Sharing(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes. ``together`` is what ``instances`` take (the sum of their proportional set sizes), ``alone`` what each would take by itself:
    every page that it maps, once. ``merged`` is how much of it the kernel found equal (KSM) and maps from one page.

    ``ksm`` is what the kernel does about equal pages, in words; ``projects`` are those whose machines take part; ``refused`` says in
    sentences what of the host's policy is not so.
    """

    instances: int = 0
    alone: int = 0
    together: int = 0
    merged: int = 0
    ksm: str = ""
    projects: list[str] = []
    refused: list[str] = []
