"""What a trace needs, read from the store."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address

from lamella.control.lookup import find_instance
from lamella.control.network import spanning
from lamella.control.network.dual_stack import address6_of
from lamella.control.network.tracing import Ground, trace
from lamella.model.errors import Conflict, Invalid
from lamella.model.firewall import ICMP6, Protocol
from lamella.model.instance import Instance
from lamella.model.network import Port
from lamella.model.trace import Trace
from lamella.model.verdict import Packet
from lamella.store.store import Transaction


def traced(tx: Transaction, project: str, name: str, to: str, protocol: Protocol, port: int, type: int) -> Trace:
    """:raise NotFound: when *to* is no address and no instance. :raise Conflict: when one of the two has no network."""
    if protocol is Protocol.ANY:
        raise Invalid("a packet has a protocol", hint="say which: tcp:80, udp:53 or icmp", field="protocol")
    if protocol in (Protocol.TCP, Protocol.UDP) and not port:
        raise Invalid(f"{protocol} packets go to a port", hint=f"say which: {protocol}:80", field="port")
    instance = find_instance(tx, project, name)
    source = _first_port(tx, instance)
    destination = _destination(tx, project, to)
    six = isinstance(destination, IPv6Address)
    packet = Packet(
        source=_source6(source, name) if six else IPv4Interface(source.spec.address).ip,
        destination=destination,
        protocol=protocol.value,
        port=port if protocol is not Protocol.ICMP else 0,
        type=ICMP6.get(type, type) if six else type,
    )
    ground = Ground(
        networks={network.id: network for network in tx.list("network")},
        ports=tx.list("port"),
        firewalls={firewall.id: firewall for firewall in tx.list("firewall")},
        routers={router.id: router for router in tx.list("router")},
        floating={IPv4Address(one.spec.address): one.spec.port for one in tx.list("address") if one.spec.port},
        tunnelling=spanning.underlays(tx).keys(),
        names={one.id: one.name for one in (*tx.list("instance"), *tx.list("firewall")) if one.project == project},
    )
    return trace(ground, source, packet)


def _first_port(tx: Transaction, instance: Instance) -> Port:
    found = tx.by_id(instance.status.port) if instance.status.port else None
    if found is None:
        raise Conflict(f"{instance.name} is on no network", hint="it sends nothing and is sent nothing")
    return found


def _source6(port: Port, name: str) -> IPv6Address:
    found = address6_of(port)
    if found is None:
        raise Conflict(f"{name} has no IPv6: its network has no subnet of it", hint="it sends nothing by IPv6")
    return found


def _destination(tx: Transaction, project: str, to: str) -> IPv4Address | IPv6Address:
    try:
        address = ip_address(to)
        if isinstance(address, IPv6Address) and (address.is_link_local or address.is_multicast):
            raise Invalid(f"{to} means somebody else on every network", hint="name another address", field="to")
        return address
    except ValueError:
        return IPv4Interface(_first_port(tx, find_instance(tx, project, to)).spec.address).ip
