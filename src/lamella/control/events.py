"""Events: what happened, written in the transaction that made it happen."""

from lamella.model.kinds import AnyResource
from lamella.model.operation import Event, EventSpec, EventStatus
from lamella.model.resource import new_resource
from lamella.store.store import Transaction


def record(tx: Transaction, about: AnyResource, type: str, message: str, **facts: str) -> None:
    """Write that *type* (``instance.started``) befell *about*."""
    spec = EventSpec(
        type=type, subject=about.id, subject_name=f"{about.kind}/{about.name}", message=message, facts=facts
    )
    event: Event = new_resource("event", "pending", spec, EventStatus(), project=about.project)
    event.name = event.id.replace("_", "-")
    tx.insert(event)
