"""Balancers: rows with an address of a network, and which instances they lead to."""

import zlib
from ipaddress import IPv4Network

import msgspec

from lamella.control.addressing import free_address, static_address
from lamella.control.changing import network_named
from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.merging import merge_labels, merge_patch
from lamella.control.network.balancing import check_spec, holder_name
from lamella.control.network.joining import check_unrouted
from lamella.model.balancer import Balancer, BalancerReport, BalancerSpec, BalancerStatus
from lamella.model.errors import Conflict, Forbidden, NotFound, Unsupported
from lamella.model.ids import check_name
from lamella.model.instance import Publish
from lamella.model.network_bodies import BalancerCreate
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource
from lamella.model.validation import invalid
from lamella.store.store import Audit, Store, Transaction


class Balancers:
    """Intent for balancers. Whoever may write in a project may make them there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, who: Principal, project: str, body: BalancerCreate) -> Balancer:
        """:raise Conflict: when its address or a port of a host is taken. :raise NotFound: when its network is not there."""
        check_name(body.name)

        def write(tx: Transaction) -> Balancer:
            need_project(tx, project)
            network = network_named(tx, project, body.network, field="network")
            check_unrouted(network)
            balancer: Balancer = new_resource(
                "balancer",
                body.name,
                BalancerSpec(
                    network=network.id,
                    address="",
                    listeners=body.listeners,
                    targets=body.targets,
                    check=body.check,
                    spread=body.spread,
                    publish=body.publish,
                    drain=body.drain,
                    certificate=body.certificate,
                ),
                BalancerStatus(),
                project=project,
                labels=body.labels,
            )
            check_spec(balancer.spec)
            _check_certificate(who, "", balancer.spec.certificate)
            subnet, taken = IPv4Network(network.spec.subnet), tx.claims(f"address:{network.id}")
            if body.address:
                found = static_address(subnet, body.address, taken, field="address")
            else:
                found = free_address(subnet, taken, near=zlib.crc32(balancer.id.encode()))
            balancer.spec.address = str(found.ip)
            tx.insert(balancer)
            tx.claim(f"address:{network.id}", balancer.spec.address, balancer.id)
            _claim_published(tx, balancer, [])
            tx.audit(Audit(principal=who.name, verb="create", subject=f"balancer/{project}/{body.name}"))
            record(tx, balancer, "balancer.created", f"{who.name} created balancer {body.name} ({found.ip})")
            return balancer

        return await self._store.write(write)

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None
    ) -> Balancer:
        """Labels, and everything but where it is: clients know its address."""

        def write(tx: Transaction) -> Balancer:
            balancer = find_balancer(tx, project, name)
            if isinstance(body.labels, dict):
                merge_labels(balancer.labels, body.labels)
            if isinstance(body.spec, dict):
                before = balancer.spec
                try:
                    wanted = msgspec.convert(merge_patch(msgspec.to_builtins(before), body.spec), BalancerSpec)
                except msgspec.ValidationError as error:
                    raise invalid(str(error), "the change", "spec") from None
                if (wanted.network, wanted.address) != (before.network, before.address):
                    raise Unsupported(
                        "network and address of a balancer stay", hint="make another balancer", field="spec.address"
                    )
                check_spec(wanted)
                _check_certificate(who, before.certificate, wanted.certificate)
                balancer.spec = wanted
                _claim_published(tx, balancer, before.publish)
                record(tx, balancer, "balancer.changed", f"{who.name} changed balancer {balancer.name}")
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"balancer/{project}/{balancer.name}"))
            return tx.update(balancer, expected=expected)

        return await self._store.write(write)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None) -> None:
        """Its address is free at once; hosts give it up when they hear of it."""

        def write(tx: Transaction) -> None:
            balancer = find_balancer(tx, project, name)
            if expected is not None:
                tx.update(balancer, expected=expected)
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"balancer/{project}/{balancer.name}"))
            record(tx, balancer, "balancer.removed", f"{who.name} removed balancer {balancer.name}")
            tx.delete(balancer.id)

        await self._store.write(write)


def find_balancer(tx: Transaction, project: str, name: str) -> Balancer:
    """By name in *project*, or by id. :raise NotFound: when there is none."""
    found = tx.get("balancer", project, name) or tx.by_id(name)
    if found is None or found.kind != "balancer" or found.project != project:
        raise NotFound(f"no balancer is called {name!r} in project {project}", hint="lamella balancer ls lists them")
    return found


def hear(tx: Transaction, host: str, report: BalancerReport) -> None:
    """Write down what *host* saw. A balancer that is gone has nothing to be written to."""
    balancer = tx.by_id(report.id)
    if balancer is None or balancer.kind != "balancer":
        return
    balancer.status.backends[host] = report.backends
    balancer.status.conditions[host] = report.conditions
    for type, message in report.events:
        record(tx, balancer, type, message)
    tx.update(balancer)


def _check_certificate(who: Principal, before: str, wanted: str) -> None:
    """:raise Forbidden: when somebody names a file of the hosts who may not."""
    if wanted and wanted != before and not who.admin:
        raise Forbidden("files of the hosts are for administrators", hint="ask one to set the certificate")


def _claim_published(tx: Transaction, balancer: Balancer, before: list[Publish]) -> None:
    """:raise Conflict: when somebody else publishes one of its ports on a host; names whom."""
    old, new = ({_key(item): item for item in items} for items in (before, balancer.spec.publish))
    for host in tx.list("host"):
        space = f"published:{host.id}"
        holders = tx.claims(space)
        for key in old.keys() - new.keys():
            tx.release(space, key, balancer.id)
        for key in new:
            holder = holders.get(key, balancer.id)
            if holder != balancer.id:
                raise Conflict(
                    f"port {key} of host {host.name} is published by {holder_name(tx, holder)}",
                    hint="publish another port",
                    field="publish",
                )
            tx.claim(space, key, balancer.id)


def _key(item: Publish) -> str:
    return f"{item.host_address}:{item.host_port}/{item.protocol}"
