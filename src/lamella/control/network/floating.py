"""Floating addresses: of external networks, each leads to one port behind a router with an uplink, and to another when it is told."""

from ipaddress import IPv4Network

from lamella.control.addressing import free_address, static_address
from lamella.control.events import record
from lamella.control.lookup import find_instance, need_project
from lamella.control.merging import merge_labels
from lamella.model.assignment import RouterTask
from lamella.model.errors import Conflict, Invalid, NotFound, Unsupported
from lamella.model.ids import check_name
from lamella.model.instance import Instance
from lamella.model.network import Network, Port
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource
from lamella.model.router import AddressSpec, AddressStatus, FloatingAddress, Router
from lamella.model.router_bodies import AddressAttach, AddressCreate
from lamella.store.store import Audit, Store, Transaction


class Addresses:
    """Intent for floating addresses. Whoever may write in a project may have them there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, who: Principal, project: str, body: AddressCreate) -> FloatingAddress:
        """:raise Conflict: when there is no external network, the address is taken, or the instance cannot have one."""
        if body.name:
            check_name(body.name)

        def write(tx: Transaction) -> FloatingAddress:
            need_project(tx, project)
            network = _external(tx, project, body.network)
            subnet, taken = IPv4Network(network.spec.subnet), tx.claims(f"address:{network.id}")
            if body.address:
                address = str(static_address(subnet, body.address, taken, field="address").ip)
            else:
                address = str(free_address(subnet, taken).ip)
            spec = AddressSpec(address=address, network=network.id)
            made: FloatingAddress = new_resource(
                "address", body.name or address, spec, AddressStatus(), project=project, labels=body.labels
            )
            tx.insert(made)
            tx.claim(f"address:{network.id}", address, made.id)
            tx.audit(Audit(principal=who.name, verb="create", subject=f"address/{project}/{made.name}"))
            record(tx, made, "address.created", f"{who.name} took {address} of network {network.name}")
            return _lead(tx, made, find_instance(tx, project, body.instance)) if body.instance else made

        return await self._store.write(write)

    async def attach(self, who: Principal, project: str, name: str, body: AddressAttach) -> FloatingAddress:
        """:raise Conflict: when it leads to somebody already, or the instance has no port that it can lead to."""

        def write(tx: Transaction) -> FloatingAddress:
            address = find_address(tx, project, name)
            tx.audit(Audit(principal=who.name, verb="attach", subject=f"address/{project}/{address.name}"))
            return _lead(tx, address, find_instance(tx, project, body.instance))

        return await self._store.write(write)

    async def detach(self, who: Principal, project: str, name: str) -> FloatingAddress:
        """It leads to nobody; that already is fine."""

        def write(tx: Transaction) -> FloatingAddress:
            address = find_address(tx, project, name)
            tx.audit(Audit(principal=who.name, verb="detach", subject=f"address/{project}/{address.name}"))
            if not address.spec.port:
                return address
            record(tx, address, "address.detached", f"{address.spec.address} leads to nobody any more")
            return _let_go(tx, address)

        return await self._store.write(write)

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None
    ) -> FloatingAddress:
        """Labels. :raise Unsupported: for anything else."""

        def write(tx: Transaction) -> FloatingAddress:
            address = find_address(tx, project, name)
            if isinstance(body.spec, dict):
                raise Unsupported(
                    "an address is attached and detached, not changed", hint="lamella address attach", field="spec"
                )
            if isinstance(body.labels, dict):
                merge_labels(address.labels, body.labels)
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"address/{project}/{address.name}"))
            return tx.update(address, expected=expected)

        return await self._store.write(write)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None) -> None:
        """:raise Conflict: while it leads to somebody."""

        def write(tx: Transaction) -> None:
            address = find_address(tx, project, name)
            if expected is not None:
                tx.update(address, expected=expected)
            if address.spec.port:
                instance = tx.by_id(address.status.instance)
                raise Conflict(
                    f"{address.spec.address} leads to {'an instance' if instance is None else instance.name}",
                    hint=f"lamella address detach {address.name}",
                )
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"address/{project}/{address.name}"))
            record(tx, address, "address.removed", f"{who.name} gave {address.spec.address} back")
            tx.delete(address.id)

        await self._store.write(write)


def find_address(tx: Transaction, project: str, name: str) -> FloatingAddress:
    """By name in *project*, by id, or by itself. :raise NotFound: when there is none."""
    found = tx.get("address", project, name) or tx.by_id(name)
    if found is None:
        found = next((one for one in tx.list("address", project=project) if one.spec.address == name), None)
    if found is None or found.kind != "address" or found.project != project:
        raise NotFound(f"no address is called {name!r} in project {project}", hint="lamella address ls lists them")
    return found


def let_go_of_port(tx: Transaction, port: str) -> None:
    """The port with this id is about to go: no address leads to it."""
    addresses: list[FloatingAddress] = tx.list("address")
    for address in addresses:
        if address.spec.port == port:
            _let_go(tx, address)


def tasks(tx: Transaction) -> list[RouterTask]:
    """What hosts are to have of routers."""
    ports: dict[str, dict[str, str]] = {}
    addresses: list[FloatingAddress] = tx.list("address")
    for address in addresses:
        port: Port | None = tx.by_id(address.spec.port) if address.spec.port else None
        if port is not None:
            ports.setdefault(port.spec.network, {})[address.spec.address] = port.spec.address.partition("/")[0]
    routers: list[Router] = tx.list("router")
    return [
        RouterTask(
            id=router.id,
            name=router.name,
            spec=router.spec,
            floating={to: at for id in router.spec.networks for to, at in ports.get(id, {}).items()},
        )
        for router in routers
    ]


def outside(tx: Transaction) -> list[str]:
    """The subnets of external networks."""
    networks: list[Network] = tx.list("network")
    return sorted(network.spec.subnet for network in networks if network.spec.external)


def _external(tx: Transaction, project: str, name: str) -> Network:
    field = "network"
    if name:
        found = tx.get("network", project, name) or tx.get("network", "default", name)
        if found is None:
            raise NotFound(f"there is no network {name!r}", hint="lamella network ls lists them", field=field)
        if not found.spec.external:
            raise Invalid(
                f"network {name} is inside: floating addresses are of external ones",
                hint="lamella network create public --subnet … --external",
                field=field,
            )
        return found
    networks: list[Network] = tx.list("network")
    known = [one for one in networks if one.spec.external and one.project in (project, "default")]
    if len(known) != 1:
        raise Conflict(
            f"there are {len(known)} external networks" if known else "there is no external network",
            hint="say which: --network NAME" if known else "lamella network create public --subnet … --external",
            field=field,
        )
    return known[0]


def _lead(tx: Transaction, address: FloatingAddress, instance: Instance) -> FloatingAddress:
    if address.spec.port:
        raise Conflict(
            f"{address.spec.address} leads to {_name(tx, address)} already",
            hint=f"lamella address detach {address.name}",
        )
    port = _port(tx, instance)
    for other in tx.list("address"):
        if other.spec.port == port.id:
            raise Conflict(
                f"{instance.name} has {other.spec.address} already", hint=f"lamella address detach {other.name}"
            )
    address.spec.port, address.status.instance = port.id, instance.id
    record(tx, address, "address.attached", f"{address.spec.address} leads to {instance.name}")
    return tx.update(address)


def _let_go(tx: Transaction, address: FloatingAddress) -> FloatingAddress:
    address.spec.port = address.status.instance = ""
    return tx.update(address)


def _port(tx: Transaction, instance: Instance) -> Port:
    """The first that a router with an uplink leads out of. :raise Conflict: when there is none."""
    for id in (instance.status.port, *instance.status.ports.values()):
        port = tx.by_id(id) if id else None
        network = tx.by_id(port.spec.network) if port is not None else None
        router = tx.by_id(network.status.router) if network is not None and network.status.router else None
        if port is not None and router is not None and router.spec.uplink:
            return port
    raise Conflict(
        f"{instance.name} is on no network that a router leads out of",
        hint="lamella router create NAME --network FRONT --uplink",
        field="instance",
    )


def _name(tx: Transaction, address: FloatingAddress) -> str:
    instance = tx.by_id(address.status.instance)
    return "an instance" if instance is None else instance.name
