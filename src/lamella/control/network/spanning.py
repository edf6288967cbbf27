"""Networks that span hosts: the number of each in tunnels, what packets have room for there, and who is on which host."""

import zlib
from collections.abc import Container
from ipaddress import IPv4Address

from lamella.model.errors import NoRoom
from lamella.model.host import Host, Underlay
from lamella.model.network import Neighbour, Network, Port
from lamella.store.store import Transaction

# RFC 7348: 24 bits. What an inner packet loses to the outer Ethernet, IPv4, UDP and VXLAN headers.
VNIS = 1 << 24
OVERHEAD = 50
_SMALLEST_MTU = 576
_SPACE = "vni"


def free_vni(network: str, taken: Container[str]) -> int:
    """A number that no network has, 1 to 2²⁴-1. Where the search begins follows from the id: two layers on one machine seldom meet.

    :raise NoRoom: when all are taken.
    """
    start = zlib.crc32(network.encode())
    for step in range(VNIS - 1):
        vni = (start + step) % (VNIS - 1) + 1
        if str(vni) not in taken:
            return vni
    raise NoRoom("every VXLAN network identifier is taken", hint="remove networks")


def underlays(tx: Transaction) -> dict[str, Underlay]:
    """Of hosts that tunnel, by their ids. Those that are away are among them: their instances go on."""
    hosts: list[Host] = tx.list("host")
    return {
        host.id: host.status.underlay for host in hosts if host.status.underlay is not None and host.deleted_at is None
    }


def settle(tx: Transaction) -> None:
    """Every network has what the hosts' tunnels take, since the hosts are not what they were."""
    there = underlays(tx)
    networks: list[Network] = tx.list("network")
    for network in networks:
        if fit(tx, network, there):
            tx.update(network)


def fit(tx: Transaction, network: Network, there: dict[str, Underlay]) -> bool:
    """Give *network*, a row, its number and MTU; whether anything of it is new. A number that it has had it keeps."""
    status = network.status
    before = status.vni, status.mtu
    if there and not network.spec.external:
        room = min(underlay.mtu for underlay in there.values()) - OVERHEAD
        status.mtu = max(_SMALLEST_MTU, min(network.spec.mtu, room))
        if not status.vni:
            status.vni = free_vni(network.id, tx.claims(_SPACE))
            tx.claim(_SPACE, str(status.vni), network.id)
    else:
        status.mtu = 0
    return before != (status.vni, status.mtu)


def neighbours(tx: Transaction, host: str) -> list[Neighbour]:
    """The ports on other hosts of the networks that the host with this id has ports on; none when it does not tunnel."""
    there = underlays(tx)
    if host not in there or len(there) < 2:
        return []
    ports: list[Port] = tx.list("port")
    carried = {port.spec.network for port in ports if port.status.host == host}
    projects = {network.id: network.project for network in tx.list("network")}
    found: list[Neighbour] = []
    for port in ports:
        other = port.status.host or ""
        if port.spec.network not in carried or other == host or other not in there:
            continue
        found.append(
            Neighbour(
                port=port.id,
                network=port.spec.network,
                address=port.spec.address,
                mac=port.spec.mac,
                host=str(IPv4Address(there[other].address)),
                firewalls=port.spec.firewalls,
                name=_name(tx, port, projects[port.spec.network]),
            )
        )
    return found


def _name(tx: Transaction, port: Port, project: str) -> tuple[str, ...]:
    """As ``lamella.host.machine.residents_of`` has it of its own."""
    instance = tx.by_id(port.spec.owner)
    if instance is None:
        return ()
    return (instance.name,) if instance.project == project else (instance.name, instance.project)
