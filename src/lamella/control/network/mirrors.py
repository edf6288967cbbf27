"""Mirrors: a copy of all that a port sends and is sent goes to another port. The row of the first says to which."""

from lamella.control.events import record
from lamella.control.lookup import find_instance
from lamella.model.errors import Conflict, NotFound, Unsupported
from lamella.model.instance import Instance
from lamella.model.network import Port
from lamella.model.network_bodies import PortMirror
from lamella.model.requests import Principal
from lamella.store.store import Audit, Transaction

_SPACE = "mirror:"


def mirror(tx: Transaction, who: Principal, project: str, name: str, body: PortMirror) -> Port:
    """Have the NIC of instance *name* mirrored as *body* says, or not any more.

    :raise NotFound: when there is no such instance or NIC. :raise Conflict: when copies would come back to where they came from.
    :raise Unsupported: when the two are on different hosts.
    """
    instance = find_instance(tx, project, name)
    port = _port(tx, instance, body.nic)
    other = None if body.to is None else find_instance(tx, project, body.to)
    target = None if other is None else _port(tx, other, None)
    if other is not None and target is not None:
        if other.status.host != instance.status.host:
            raise Unsupported(f"{other.name} is on another host than {instance.name}", hint="mirror to one that is not")
        _refuse_circle(tx, instance, port, target)
    if port.spec.mirror:
        tx.release(_SPACE + port.spec.mirror, port.id, port.id)
    port.spec.mirror = "" if target is None else target.id
    if target is not None:
        tx.claim(_SPACE + target.id, port.id, port.id)
    what = f"is mirrored to {other.name}" if other is not None else "is mirrored no more"
    record(tx, instance, "port.mirrored", f"what passes {instance.name} {what}")
    tx.audit(Audit(principal=who.name, verb="mirror", subject=f"instance/{project}/{instance.name}"))
    return tx.update(port)


def forget_mirrors(tx: Transaction, target: str) -> None:
    """The port with the id *target* goes: what was mirrored to it is not any more."""
    for id in tx.claims(_SPACE + target):
        port: Port | None = tx.by_id(id)
        if port is not None:
            tx.release(_SPACE + target, id, id)
            port.spec.mirror = ""
            tx.update(port)


def _port(tx: Transaction, instance: Instance, nic: str | None) -> Port:
    id = instance.status.port if nic is None else instance.status.ports.get(nic)
    found = tx.by_id(id) if id else None
    if found is None:
        names = ", ".join(instance.status.ports)
        raise NotFound(
            f"{instance.name} has no network" if nic is None else f"{instance.name} has no NIC {nic!r}",
            hint=f"it has {names} beside the first" if names else "",
            field="nic",
        )
    return found


def _refuse_circle(tx: Transaction, instance: Instance, port: Port, target: Port) -> None:
    """:raise Conflict: when *port* would be sent copies of what it is sent."""
    seen: Port | None = target
    while seen is not None:
        if seen.id == port.id:
            what = "itself" if target.id == port.id else "one that is mirrored to it"
            raise Conflict(f"{instance.name} cannot be mirrored to {what}", hint="copies would have no end", field="to")
        seen = tx.by_id(seen.spec.mirror) if seen.spec.mirror else None
