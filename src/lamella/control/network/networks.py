"""Networks: rows that hosts make bridges of, when an instance of theirs is on them or at once."""

from ipaddress import IPv4Network, IPv6Network
from typing import Any

import msgspec

from lamella.control.addressing import gateway_of
from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.merging import merge_labels, merge_patch
from lamella.control.network import dual_stack, joining, spanning, subnets
from lamella.control.network.mirrors import mirror
from lamella.control.network.routers import find_router
from lamella.model.errors import Conflict, Forbidden, Invalid, NotFound, Unsupported
from lamella.model.ids import check_name
from lamella.model.network import Network, NetworkSpec, NetworkStatus, Port
from lamella.model.network_bodies import NetworkCreate, PortMirror
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource
from lamella.model.validation import invalid
from lamella.store.store import Audit, Store, Transaction

DEFAULT = "default"


class Networks:
    """Intent for networks. Whoever may write in a project may make them there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, who: Principal, project: str, body: NetworkCreate) -> Network:
        """:raise Conflict: when its name is taken, or its subnet overlaps another network's of the layer."""
        check_name(body.name)
        wanted = subnets.parse(body.subnet, IPv4Network) if body.subnet else None
        wanted6 = subnets.parse(body.subnet6, IPv6Network) if body.subnet6 else None
        _check_external(who, body)
        dual_stack.check_alone(body)

        def write(tx: Transaction) -> Network:
            need_project(tx, project)
            others: list[Network] = tx.list("network")
            router = find_router(tx, project, body.router, field="router") if body.router else None
            subnet = wanted or subnets.choose(IPv4Network(other.spec.subnet) for other in others)
            # What is behind another router is not met.
            met = [other for other in others if other.status.router == (router.id if router is not None else "")]
            subnets.check_free(subnet, [(_owner(other, project), IPv4Network(other.spec.subnet)) for other in met])
            spec = NetworkSpec(subnet=str(subnet), mtu=body.mtu, isolated=body.isolated, external=body.external)
            status = NetworkStatus(gateway=str(gateway_of(subnet)))
            if wanted6 is not None:
                six = [
                    (_owner(other, project), IPv6Network(other.spec.subnet6)) for other in others if other.spec.subnet6
                ]
                subnets.check_free(wanted6, six)
                spec.subnet6, status.gateway6 = str(wanted6), str(gateway_of(wanted6))
            network = tx.insert(new_resource("network", body.name, spec, status, project=project, labels=body.labels))
            if spanning.fit(tx, network, spanning.underlays(tx)):
                network = tx.update(network)
            # Overlaps are seen above; two that are made at the same instant with the same subnet meet here.
            if router is None:
                tx.claim("subnet", str(subnet), network.id)
            else:
                network = joining.begin(tx, router, network)
            if spec.subnet6:
                tx.claim("subnet", spec.subnet6, network.id)
            given = f"{subnet}, {spec.subnet6}" if spec.subnet6 else str(subnet)
            record(tx, network, "network.created", f"{who.name} created network {network.name} ({given})")
            tx.audit(Audit(principal=who.name, verb="create", subject=f"network/{project}/{network.name}"))
            return network

        return await self._store.write(write)

    async def mirror(self, who: Principal, project: str, name: str, body: PortMirror) -> Port:
        """As :func:`lamella.control.network.mirrors.mirror`; hosts hear of it at once."""
        return await self._store.write(lambda tx: mirror(tx, who, project, name, body))

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None
    ) -> Network:
        """Labels, and whether it is isolated.

        :raise Unsupported: for what instances were told when they started: subnet and MTU.
        """

        def write(tx: Transaction) -> Network:
            network = _find(tx, project, name)
            if isinstance(body.labels, dict):
                merge_labels(network.labels, body.labels)
            if isinstance(body.spec, dict):
                wanted = _with(network.spec, body.spec)
                if msgspec.structs.replace(wanted, isolated=network.spec.isolated) != network.spec:
                    raise Unsupported(
                        "of a network only spec.isolated can be changed", hint="make another network", field="spec"
                    )
                network.spec = wanted
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"network/{project}/{network.name}"))
            return tx.update(network, expected=expected)

        return await self._store.write(write)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None) -> None:
        """Forget it; hosts remove its bridge when they hear of it.

        :raise Conflict: while instances have ports on it, and for the network ``default`` always.
        """

        def write(tx: Transaction) -> None:
            network = _find(tx, project, name)
            if (network.project, network.name) == ("default", DEFAULT):
                raise Conflict("network default stays", hint="instances without one: lamella run --network none")
            if expected is not None:
                tx.update(network, expected=expected)
            owners = sorted({_name(tx, port.spec.owner) for port in tx.list("port") if port.spec.network == network.id})
            owners += sorted(f"balancer {one.name}" for one in tx.list("balancer") if one.spec.network == network.id)
            if owners:
                more = f" and {len(owners) - 3} more" if len(owners) > 3 else ""
                raise Conflict(
                    f"network {network.name} is in use by {', '.join(owners[:3])}{more}", hint="remove them first"
                )
            joining.forget(tx, network)
            record(tx, network, "network.removed", f"{who.name} removed network {network.name}")
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"network/{project}/{network.name}"))
            tx.delete(network.id)

        await self._store.write(write)


def _check_external(who: Principal, body: NetworkCreate) -> None:
    """:raise Forbidden: unless *who* is an administrator: hosts lead its addresses in, whoever has them outside."""
    if body.external and not who.admin:
        raise Forbidden(
            "external networks are for administrators of the layer", hint="addresses of one are for everybody"
        )
    if body.external and (body.router or body.isolated or not body.subnet):
        raise Invalid(
            "an external network is a subnet that comes to the hosts from outside, and nothing else",
            hint="lamella network create public --subnet 203.0.113.0/24 --external",
            field="external",
        )


def _find(tx: Transaction, project: str, name: str) -> Network:
    found = tx.get("network", project, name) or tx.by_id(name)
    if found is None or found.kind != "network" or found.project != project:
        raise NotFound(f"no network is called {name!r} in project {project}", hint="lamella network ls lists them")
    return found


def _owner(network: Network, project: str) -> str:
    """Who has a subnet, for somebody in *project*: of other projects no name is told."""
    if network.project in (project, "default"):
        return f"network {network.name}"
    return f"a network of another project ({network.id[-6:]})"


def _name(tx: Transaction, owner: str) -> str:
    instance = tx.by_id(owner)
    return owner if instance is None else instance.name


def _with(spec: NetworkSpec, patch: dict[str, Any]) -> NetworkSpec:
    try:
        return msgspec.convert(merge_patch(msgspec.to_builtins(spec), patch), NetworkSpec)
    except msgspec.ValidationError as error:
        raise invalid(str(error), "the change", "spec") from None
