"""Rules of firewalls as people write them: ``tcp:80,443``, ``icmp``, ``any``, ``from=10.0.0.0/8:udp``, ``from=firewall:app:tcp:22``."""

from lamella.model.errors import Invalid
from lamella.model.firewall import FIREWALL, PortRange, Protocol, Rule

# What the types of ICMP messages that people name are (RFC 792).
TYPES = {"echo": 8, "unreachable": 3, "time-exceeded": 11}
_HINT = "write it like tcp:80,443 or from=10.0.0.0/8:tcp:22 or from=firewall:app:tcp:5432 or icmp or any"


def parse(text: str, *, field: str = "allow") -> Rule:
    """:raise Invalid: when *text* is no rule."""
    rest, peer = text, ""
    for word in ("from=", "to="):
        if text.startswith(word):
            rest = text.removeprefix(word)
            prefix = FIREWALL if rest.startswith(FIREWALL) else ""
            name, rest = _peer(rest.removeprefix(prefix))
            peer = prefix + name
            if not name:
                raise Invalid(f"{text!r} names nobody", hint=_HINT, field=field)
    protocol, _, what = rest.partition(":")
    if protocol not in ("", *Protocol):
        raise Invalid(f"{protocol!r} in {text!r} is no protocol", hint=_HINT, field=field)
    kind = Protocol(protocol or "any")
    items = [item for item in what.split(",") if item]
    if not text or (":" in rest and not items):
        raise Invalid(f"{text!r} is no rule", hint=_HINT, field=field)
    if kind is Protocol.ICMP:
        return Rule(protocol=kind, types=[_type(item, text, field) for item in items], peer=peer)
    if items and kind is Protocol.ANY:
        raise Invalid(f"{text!r} has ports of no protocol", hint="say tcp or udp", field=field)
    return Rule(protocol=kind, ports=[_ports(item, text, field) for item in items], peer=peer)


def _peer(text: str) -> tuple[str, str]:
    """Who is named, and the rest behind the colon. A prefix of IPv6 ends at its length, or in brackets."""
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        return name, rest.removeprefix(":")
    address, slash, behind = text.partition("/")
    if slash and ":" in address:
        length, _, rest = behind.partition(":")
        return f"{address}/{length}", rest
    name, _, rest = text.partition(":")
    return name, rest


def format(rule: Rule, *, outward: bool = False) -> str:
    """As :func:`parse` reads it."""
    what = ",".join(f"{each.first}" if each.first == each.last else f"{each.first}-{each.last}" for each in rule.ports)
    names = {number: name for name, number in TYPES.items()}
    what = what or ",".join(names.get(number, str(number)) for number in rule.types)
    peer = f"{'to' if outward else 'from'}={rule.peer}:" if rule.peer else ""
    return f"{peer}{rule.protocol}{':' if what else ''}{what}"


def _type(item: str, text: str, field: str) -> int:
    number = TYPES.get(item, int(item) if item.isascii() and item.isdigit() and len(item) < 4 else 256)
    if number > 255:
        raise Invalid(
            f"{item!r} in {text!r} is no type of ICMP messages", hint="a number, or " + ", ".join(TYPES), field=field
        )
    return number


def _ports(item: str, text: str, field: str) -> PortRange:
    first, dash, last = item.partition("-")
    numbers = [
        int(part) if part.isascii() and part.isdigit() and len(part) < 6 else 0
        for part in (first, last if dash else first)
    ]
    if not 1 <= numbers[0] <= numbers[1] <= 65535:
        raise Invalid(f"{item!r} in {text!r} is no port", hint="1 to 65535, or 8000-8100", field=field)
    return PortRange(first=numbers[0], last=numbers[1])
