"""Published ports as people write them, for the command and the library: ``[IP:]HOST:PORT[/udp]``."""


def parse(text: str) -> tuple[str, int, int, str]:
    """Address (empty: any), port of the host (0: the layer chooses), port inside, ``tcp`` or ``udp``.

    :raise Invalid: when *text* is no published port.
    """
    body, slash, protocol = text.partition("/")
    address = ""
    if body.startswith("["):
        address, _, body = body[1:].partition("]:")
    parts = body.split(":")
    if len(parts) == 3 and not address:
        address, *parts = parts
    inside = _port(parts[-1], 1)
    outside = _port(parts[0], 0) if len(parts) == 2 else 0
    if len(parts) > 2 or inside is None or outside is None or protocol not in (("tcp", "udp") if slash else ("",)):
        from lamella.model.errors import Invalid

        hint = "write it like 8080:80, 127.0.0.1:8080:80 or 53:53/udp"
        raise Invalid(f"{text!r} is not a port to publish", hint=hint, field="publish")
    return address, outside, inside, protocol or "tcp"


def _port(text: str, least: int) -> int | None:
    """*text* as a port from *least* to 65535; ``None`` when it is none. An empty one is 0, where that is allowed."""
    if not text and not least:
        return 0
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else -1
    return number if least <= number <= 65535 else None
