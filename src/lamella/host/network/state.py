"""What the rules in force say, read back from the kernel: so a restarted daemon knows which host ports are taken, and by whom."""

from collections.abc import Iterable

import msgspec

from lamella.host.network.nft import Nft, NftError
from lamella.host.network.plan import ANY, NETWORK_CONTAINERS, PROTOCOLS, Element, Forward

_NAMES = {str(number): name for name, number in PROTOCOLS.items()} | {name: name for name in PROTOCOLS}

Entry = tuple[str, list[str], list[str]]


class _Tuple(msgspec.Struct):
    concat: list[str | int] = []


class _Inner(msgspec.Struct):
    val: _Tuple | str
    comment: str = ""


class _Key(msgspec.Struct):
    """libnftables-json(5): an element with a comment is ``{"elem": …}``, one without is its bare value."""

    elem: _Inner | None = None
    concat: list[str | int] = []


class _Container(msgspec.Struct):
    elem: list[_Key | tuple[_Key, _Tuple]] = []


def entries(nft: Nft, table: str, containers: Iterable[tuple[str, str, str]]) -> dict[str, list[Entry]]:
    """(owner, key, value) of every element, by the name of its set or map; nothing of those that are not there."""
    found: dict[str, list[Entry]] = {}
    for family, kind, name in containers:
        try:
            listing = nft.listing(f"list {kind} {family} {table} {name}")
        except NftError:
            listing = []
        parts = [msgspec.convert(item[kind], _Container) for item in listing if kind in item]
        found[name] = [_entry(element) for part in parts for element in part.elem]
    return found


def _entry(element: _Key | tuple[_Key, _Tuple]) -> Entry:
    key, value = element if isinstance(element, tuple) else (element, _Tuple())
    owner, words = "", key.concat
    if key.elem is not None:
        owner, inner = key.elem.comment, key.elem.val
        words = [inner] if isinstance(inner, str) else inner.concat
    return owner, [str(word) for word in words], [str(word) for word in value.concat]


def forwards(host: dict[str, list[Entry]], layer: dict[str, list[Entry]]) -> list[Forward]:
    """The published ports that are whole: in the host's maps and, under the same uplink port and owner, in the layer's."""
    inbound = {(_NAMES.get(key[0], ""), key[1], owner): value for owner, key, value in layer.get("inbound", [])}
    found: list[Forward] = []
    anywhere = [(owner, [ANY, *key], value) for owner, key, value in host.get("wildcard", [])]
    for owner, (address, number, port), (_, uplink_port) in [*host.get("specific", []), *anywhere]:
        protocol = _NAMES.get(number, "")
        target = inbound.get((protocol, uplink_port, owner))
        if target is not None:
            found.append(
                Forward(
                    owner=owner,
                    protocol=protocol,
                    host_address=address,
                    host_port=int(port),
                    uplink_port=int(uplink_port),
                    address=target[0],
                    port=int(target[1]),
                )
            )
    return found


def known(layer: dict[str, list[Entry]]) -> list[Element]:
    """The elements that let ports send, as ``plan.known`` writes them."""
    return [
        Element(family="bridge", container="known", key=f'"{link}" . {mac} . {address}', owner=owner)
        for owner, (link, mac, address), _ in layer.get("known", [])
    ]


def networks(layer: dict[str, list[Entry]]) -> dict[str, list[Element]]:
    """The elements of networks by the network's id, as ``plan.of_network`` writes them."""
    found: dict[str, list[Element]] = {}
    for family, _, container in reversed(NETWORK_CONTAINERS):
        for owner, links, _ in layer.get(container, []):
            key = " . ".join(f'"{link}"' for link in links)
            found.setdefault(owner, []).append(Element(family=family, container=container, key=key, owner=owner))
    return found
