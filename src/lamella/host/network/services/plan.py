"""What one network's dnsmasq is told, computed from values alone (dnsmasq(8)).

Its arguments stay while it runs; the files are read again when it is sent SIGHUP. It gives addresses to our ports alone, each its own, and
knows the names of the instances on its network; whatever else it is asked goes to the host's resolvers, unless the network is isolated.
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import msgspec

from lamella.host.network.driver import DesiredNetwork, Resident
from lamella.host.network.rules import METADATA

DOMAIN = "internal"

# Where dnsmasq finds its files in its room, and the program itself.
FILES = "/files"
PROGRAM = "/dnsmasq"

HOSTS, LEASES, SERVERS = "hosts", "leases", "servers"
_LEASE = "1h"
# What dnsmasq does not take for a name there.
_WORD = re.compile("ignore|infinite|[0-9]+[smhdw]?")


class Site(msgspec.Struct, kw_only=True, frozen=True):
    """Where a network's gateway is: *interface* bears *gateway* in the network namespace at *netns* (``None``: the layer's). Without
    *outside* nothing is asked beyond it."""

    interface: str
    gateway: str
    netns: Path | None = None
    outside: bool = True


class Service(msgspec.Struct, kw_only=True, frozen=True):
    """One dnsmasq as it is to be: ``files`` are texts by name."""

    network: str
    name: str
    site: Site
    arguments: tuple[str, ...]
    files: dict[str, str]


def service(network: DesiredNetwork, site: Site, residents: Iterable[Resident], upstream: Sequence[str]) -> Service:
    """What serves *network* at *site*; *residents* may be of other networks too. *upstream* are addresses of resolvers."""
    here = sorted((one for one in residents if one.port.network == network.id), key=lambda one: one.port.id)
    domain = f"{label(network.name)}.{DOMAIN}"
    return Service(
        network=network.id,
        name=network.name,
        site=site,
        arguments=_arguments(network, site, domain),
        files={
            HOSTS: "".join(_host(one, domain) for one in here),
            LEASES: "".join(_lease(one) for one in here),
            SERVERS: "".join(f"server={address}\n" for address in upstream) if site.outside else "",
        },
    )


def label(name: str) -> str:
    """*name* as far as a DNS label goes (RFC 1123)."""
    return name.lower().replace("_", "-").replace(".", "-").strip("-")[:63].rstrip("-") or "instance"


def _arguments(network: DesiredNetwork, site: Site, domain: str) -> tuple[str, ...]:
    subnet = IPv4Network(network.subnet)
    routes = f"{METADATA}/32,{site.gateway},0.0.0.0/0,{site.gateway}"
    return (
        PROGRAM,
        # Nothing of the host's: no configuration, hosts file, user or pid file, and no leases on disk (they are all static).
        *("--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=", "--pid-file=", "--leasefile-ro"),
        *("--keep-in-foreground", "--log-facility=-", "--quiet-dhcp"),
        *("--bind-dynamic", f"--interface={site.interface}", "--except-interface=lo"),
        *(f"--addn-hosts={FILES}/{HOSTS}", f"--servers-file={FILES}/{SERVERS}", "--local-ttl=5", "--cache-size=1000"),
        *("--domain-needed", f"--domain={domain},{subnet},local", f"--local=/{DOMAIN}/"),
        *(
            f"--dhcp-range={subnet.network_address},static,{subnet.netmask},{_LEASE}",
            f"--dhcp-hostsfile={FILES}/{LEASES}",
        ),
        *("--dhcp-ignore=tag:!known", "--dhcp-authoritative", "--no-ping", "--dhcp-ignore-names", "--dhcp-broadcast"),
        *(f"--dhcp-option=option:router,{site.gateway}", f"--dhcp-option=option:dns-server,{site.gateway}"),
        *(f"--dhcp-option=option:mtu,{network.mtu}", f"--dhcp-option=option:classless-static-route,{routes}"),
        *_arguments6(network, domain),
    )


def _arguments6(network: DesiredNetwork, domain: str) -> tuple[str, ...]:
    """Router advertisements that send everybody to DHCPv6, which gives addresses as DHCP does; nothing without IPv6."""
    if not network.subnet6:
        return ()
    subnet = IPv6Network(network.subnet6)
    return (
        *("--enable-ra", "--quiet-ra", "--quiet-dhcp6", f"--domain={domain},{subnet},local"),
        f"--dhcp-range={subnet.network_address},static,{subnet.prefixlen},{_LEASE}",
        f"--dhcp-option=option6:dns-server,[{network.gateway6}]",
    )


def _host(resident: Resident, domain: str) -> str:
    """A line of hosts(5). The names that DHCP clients give themselves do not count: a guest could take another's. One of several parts is
    below the domain alone: bare, it could be a name of the world's."""
    name = ".".join(label(part) for part in resident.name)
    bare = f" {name}" if len(resident.name) == 1 else ""
    return "".join(
        f"{address} {name}.{domain}{bare}\n" for address in (_address(resident), _address6(resident)) if address
    )


def _lease(resident: Resident) -> str:
    name = label(resident.name[0])
    six = [f"[{_address6(resident)}]"] if resident.port.address6 else []
    words = [resident.port.mac.lower(), _address(resident), *six, *([] if _WORD.fullmatch(name) else [name]), _LEASE]
    return f"{','.join(words)}\n"


def _address(resident: Resident) -> str:
    return resident.port.address.partition("/")[0]


def _address6(resident: Resident) -> str:
    return resident.port.address6.partition("/")[0]
