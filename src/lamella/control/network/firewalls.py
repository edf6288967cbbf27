"""Firewalls: rows that hosts make rules of, and which ports belong to them."""

from ipaddress import ip_network

import msgspec

from lamella.control.events import record
from lamella.control.lookup import find_instance, need_project
from lamella.control.merging import merge_labels, merge_patch
from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.firewall import FIREWALL, NONE, Firewall, FirewallSpec, FirewallStatus, Protocol, Rule
from lamella.model.ids import check_name
from lamella.model.instance import Instance
from lamella.model.network import Port
from lamella.model.network_bodies import FirewallCreate, FirewallDefault, FirewallMember
from lamella.model.operation import Project
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource
from lamella.model.validation import invalid
from lamella.store.store import Audit, Store, Transaction


class Firewalls:
    """Intent for firewalls. Whoever may write in a project may make them there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, who: Principal, project: str, body: FirewallCreate) -> Firewall:
        """:raise Invalid: for a rule that says nothing. :raise NotFound: when one names a firewall that is not there."""
        check_name(body.name)
        if body.name == NONE:
            raise Invalid("no firewall can be called none", hint="--firewall none means: without any", field="name")

        def write(tx: Transaction) -> Firewall:
            need_project(tx, project)
            firewall: Firewall = new_resource(
                "firewall", body.name, FirewallSpec(), FirewallStatus(), project=project, labels=body.labels
            )
            tx.insert(firewall)
            firewall.spec = _resolved(tx, project, FirewallSpec(inbound=body.inbound, outbound=body.outbound))
            tx.audit(Audit(principal=who.name, verb="create", subject=f"firewall/{project}/{body.name}"))
            record(tx, firewall, "firewall.created", f"{who.name} created firewall {body.name}")
            return tx.update(firewall)

        return await self._store.write(write)

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None
    ) -> Firewall:
        """Labels and rules; flows that the new rules forbid end."""

        def write(tx: Transaction) -> Firewall:
            firewall = find_firewall(tx, project, name)
            if isinstance(body.labels, dict):
                merge_labels(firewall.labels, body.labels)
            if isinstance(body.spec, dict):
                try:
                    merged = merge_patch(msgspec.to_builtins(firewall.spec), body.spec)
                    wanted = msgspec.convert(merged, FirewallSpec)
                except msgspec.ValidationError as error:
                    raise invalid(str(error), "the change", "spec") from None
                firewall.spec = _resolved(tx, project, wanted)
                record(tx, firewall, "firewall.changed", f"{who.name} changed the rules of firewall {firewall.name}")
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"firewall/{project}/{firewall.name}"))
            return tx.update(firewall, expected=expected)

        return await self._store.write(write)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None) -> None:
        """:raise Conflict: while ports belong to it, another firewall's rules name it, or it is its project's default."""

        def write(tx: Transaction) -> None:
            firewall = find_firewall(tx, project, name)
            if expected is not None:
                tx.update(firewall, expected=expected)
            ports: list[Port] = tx.list("port")
            owners = sorted({_owner(tx, port) for port in ports if firewall.id in port.spec.firewalls})
            if owners:
                raise Conflict(
                    f"firewall {firewall.name} guards {', '.join(owners[:3])}{' …' if len(owners) > 3 else ''}",
                    hint=f"lamella firewall detach {firewall.name} {owners[0]}",
                )
            if need_project(tx, project).spec.firewall == firewall.id:
                raise Conflict(
                    f"firewall {firewall.name} guards new instances of project {project} by default",
                    hint="lamella firewall default --none",
                )
            named = [
                other.name for other in tx.list("firewall") if other.id != firewall.id and _names(other, firewall.id)
            ]
            if named:
                raise Conflict(f"rules of firewall {named[0]} name {firewall.name}", hint="change them first")
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"firewall/{project}/{firewall.name}"))
            record(tx, firewall, "firewall.removed", f"{who.name} removed firewall {firewall.name}")
            tx.delete(firewall.id)

        await self._store.write(write)

    async def make_default(self, who: Principal, project: str, body: FirewallDefault) -> Project:
        """Have it guard every NIC that is made in *project* from now on and names none; those that are there stay as they are.

        :raise NotFound: when there is no such firewall.
        """

        def write(tx: Transaction) -> Project:
            row = need_project(tx, project)
            firewall = find_firewall(tx, project, body.firewall, field="firewall") if body.firewall else None
            row.spec.firewall = "" if firewall is None else firewall.id
            tx.audit(Audit(principal=who.name, verb="default", subject=f"firewall/{project}/{body.firewall}"))
            what = "no firewall guards" if firewall is None else f"firewall {firewall.name} guards"
            record(tx, row, "firewall.default", f"{what} new instances of project {project} by default")
            return tx.update(row)

        return await self._store.write(write)

    async def attach(self, who: Principal, project: str, name: str, body: FirewallMember) -> Firewall:
        """Have it guard all ports of an instance, whether that runs or not. :raise Conflict: when the instance has none."""
        return await self._change_members(who, project, name, body.instance, belong=True)

    async def detach(self, who: Principal, project: str, name: str, body: FirewallMember) -> Firewall:
        """The instance's ports do not belong to it any more. :raise NotFound: when none did."""
        return await self._change_members(who, project, name, body.instance, belong=False)

    async def _change_members(
        self, who: Principal, project: str, name: str, instance_name: str, *, belong: bool
    ) -> Firewall:
        def write(tx: Transaction) -> Firewall:
            firewall, instance = find_firewall(tx, project, name), find_instance(tx, project, instance_name)
            ports = _ports(tx, instance)
            if not ports:
                raise Conflict(f"{instance.name} has no network", hint="a firewall guards ports on networks")
            if not belong and all(firewall.id not in port.spec.firewalls for port in ports):
                raise NotFound(f"firewall {firewall.name} does not guard {instance.name}", hint="lamella port ls")
            for port in ports:
                others = [id for id in port.spec.firewalls if id != firewall.id]
                port.spec.firewalls = sorted([*others, firewall.id]) if belong else others
                tx.update(port)
            verb = "guards" if belong else "does not guard"
            tx.audit(
                Audit(principal=who.name, verb="attach" if belong else "detach", subject=f"firewall/{firewall.name}")
            )
            record(
                tx,
                instance,
                "firewall.attached" if belong else "firewall.detached",
                f"firewall {firewall.name} {verb} {instance.name}",
            )
            return firewall

        return await self._store.write(write)


def find_firewall(tx: Transaction, project: str, name: str, *, field: str = "") -> Firewall:
    """By name in *project*, or by id. :raise NotFound: when there is none."""
    found = tx.get("firewall", project, name) or tx.by_id(name)
    if found is None or found.kind != "firewall" or found.project != project:
        raise NotFound(
            f"no firewall is called {name!r} in project {project}", hint="lamella firewall ls lists them", field=field
        )
    return found


def firewalls_of(tx: Transaction, project: str, names: list[str]) -> list[str]:
    """Ids by the names that a NIC gives, sorted; the project's default when it gives none. :raise NotFound: when one is not there."""
    if names == [NONE]:
        return []
    if not names:
        default = need_project(tx, project).spec.firewall
        return [default] if default else []
    return sorted({find_firewall(tx, project, name, field="spec.nics.firewalls").id for name in names})


def _ports(tx: Transaction, instance: Instance) -> list[Port]:
    ids = [instance.status.port, *instance.status.ports.values()]
    return [port for id in ids if id and (port := tx.by_id(id)) is not None]


def _owner(tx: Transaction, port: Port) -> str:
    instance = tx.by_id(port.spec.owner)
    return port.spec.owner if instance is None else instance.name


def _names(firewall: Firewall, id: str) -> bool:
    spec = firewall.spec
    return any(rule.peer == FIREWALL + id for rule in (*spec.inbound, *(spec.outbound or ())))


def _resolved(tx: Transaction, project: str, spec: FirewallSpec) -> FirewallSpec:
    """*spec* with its peers as they are kept: prefixes in their one form, firewalls by id."""
    outbound = None if spec.outbound is None else [_rule(tx, project, rule) for rule in spec.outbound]
    return FirewallSpec(inbound=[_rule(tx, project, rule) for rule in spec.inbound], outbound=outbound)


def _rule(tx: Transaction, project: str, rule: Rule) -> Rule:
    field = "spec.rules"
    if rule.ports and rule.protocol not in (Protocol.TCP, Protocol.UDP):
        raise Invalid(f"{rule.protocol} has no ports", hint="ports are of tcp and udp", field=field)
    if rule.types and rule.protocol is not Protocol.ICMP:
        raise Invalid(f"{rule.protocol} has no types of messages", hint="types are of icmp", field=field)
    for each in rule.ports:
        if each.first > each.last:
            raise Invalid(f"ports {each.first}-{each.last} are none", hint="write the smaller one first", field=field)
    if rule.peer.startswith(FIREWALL):
        other = find_firewall(tx, project, rule.peer.removeprefix(FIREWALL), field=field)
        return msgspec.structs.replace(rule, peer=FIREWALL + other.id)
    if rule.peer:
        try:
            return msgspec.structs.replace(rule, peer=str(ip_network(rule.peer)))
        except ValueError:
            raise Invalid(
                f"{rule.peer!r} is no prefix of IP addresses",
                hint="write it like 10.0.0.0/8 or fd10::/64, or firewall:NAME",
                field=field,
            ) from None
    return rule
