"""What a port and a network are where IPv6 is, computed from values alone: elements of the sets of ``rules``."""

import hashlib
from ipaddress import IPv6Address, IPv6Interface, IPv6Network

import msgspec

from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.names import bridge_name, port_name
from lamella.host.network.plan import Element, check_port

# (family, kind, name), in the table of IPv6.
CONTAINERS = (
    ("bridge", "set", "known"),
    ("bridge", "set", "targets"),
    ("bridge", "set", "linked"),
    ("ip6", "set", "bridged"),
    ("ip6", "set", "gateways"),
    ("ip6", "set", "outbound"),
)
OF_PORTS, OF_NETWORKS = CONTAINERS[:3], CONTAINERS[3:]


# Unique local addresses (RFC 4193) of which uplinks are made; no network may have them.
UPLINKS = IPv6Network("fd6c:616d::/32")


class Uplink6(msgspec.Struct, frozen=True):
    """The two ends of the uplink, on a /126."""

    network: IPv6Network

    @property
    def host(self) -> IPv6Interface:
        return IPv6Interface((self.network.network_address + 1, self.network.prefixlen))

    @property
    def layer(self) -> IPv6Interface:
        return IPv6Interface((self.network.network_address + 2, self.network.prefixlen))


def uplink6(mark: str) -> Uplink6:
    """Those of the layer with that *mark*: 94 bits follow from it, so that layers on one host do not meet."""
    bits = int.from_bytes(hashlib.sha256(mark.encode()).digest(), "big") >> 256 - 94
    return Uplink6(IPv6Network((int(UPLINKS.network_address) | bits << 2, 126)))


def link_local(mac: str) -> IPv6Address:
    """The link-local address that follows from *mac* (RFC 4291, appendix A): the only one that a port may have."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def address_of(port: DesiredPort) -> IPv6Address:
    """Without its prefix; the port has one."""
    return IPv6Interface(port.address6).ip


def addresses_of(port: DesiredPort) -> list[IPv6Address]:
    """What it may send as: its own address and its link-local one; nothing without IPv6."""
    return [address_of(port), link_local(port.mac)] if port.address6 else []


def gateway_of(network: DesiredNetwork) -> IPv6Interface:
    """The gateway's address with its prefix; the network has one."""
    return IPv6Interface(f"{network.gateway6}/{network.subnet6.partition('/')[2]}")


def of_port(port: DesiredPort) -> list[Element]:
    """What lets it send; nothing without IPv6. :raise Invalid: as :func:`lamella.host.network.plan.check_port`."""
    if not port.address6:
        return []
    check_port(port)
    link, mac = f'"{port_name(port.id)}"', port.mac.lower()
    found = [_element(port.id, "bridge", "linked", f"{link} . {number(int(mac.replace(':', ''), 16))}")]
    for address in addresses_of(port):
        found.append(_element(port.id, "bridge", "known", f"{link} . {mac} . {address}"))
        found.append(_element(port.id, "bridge", "targets", f"{link} . {mac} . {number(int(address))}"))
    return found


def of_network(network: DesiredNetwork) -> list[Element]:
    """What lets its instances reach each other, their gateway and, unless it is isolated, the outside; nothing without IPv6."""
    if not network.subnet6:
        return []
    link = f'"{bridge_name(network.id)}"'
    found = [
        _element(network.id, "ip6", "bridged", f"{link} . {link}"),
        _element(network.id, "ip6", "gateways", f"{link} . {gateway_of(network).ip}"),
    ]
    return found if network.isolated else [*found, _element(network.id, "ip6", "outbound", link)]


def number(value: int) -> str:
    """As sets have it whose keys are bytes of a packet."""
    return f"{value:#x}"


def read(name: str, owner: str, words: list[str]) -> Element:
    """The element of the set *name* that the kernel tells of in *words*, as it is written here."""
    family = next(family for family, _, container in CONTAINERS if container == name)
    if name in ("targets", "linked"):
        words = [*words[:-1], number(int(words[-1], 0))]
    links = 2 if name == "bridged" else 1
    return _element(owner, family, name, " . ".join([*(f'"{word}"' for word in words[:links]), *words[links:]]))


def _element(owner: str, family: str, container: str, key: str) -> Element:
    return Element(family=family, container=container, key=key, owner=owner)
