"""Which DNS servers of the host an instance can reach too."""

from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

# resolv.conf(5); systemd-resolved(8) keeps the servers behind its loopback stub in the second.
SOURCES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def parse(text: str) -> list[str]:
    """The IPv4 servers of a resolv.conf that are not on loopback, in order, each once."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = IPv4Address(words[1])
        except AddressValueError:
            continue
        if not (address.is_loopback or address.is_unspecified) and str(address) not in found:
            found.append(str(address))
    return found


def nameservers(sources: tuple[Path, ...] = SOURCES) -> list[str]:
    """The servers of the first source that has any; empty when none has."""
    for source in sources:
        try:
            servers = parse(source.read_text(errors="replace"))
        except OSError:
            continue
        if servers:
            return servers
    return []
