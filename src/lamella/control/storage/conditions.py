"""Conditions of storage: one of each type, with the time since when it says so."""

from lamella.model.errors import LamellaError
from lamella.model.resource import Condition, now

READY = "Ready"
SPACE = "Space"
HEALTHY = "Healthy"
# False of a volume that nobody may open: a replica, or what a replica replaced.
USABLE = "Usable"


def put(conditions: list[Condition], condition: Condition) -> list[Condition]:
    """*conditions* with *condition* in place of the one of its type; one that says the same keeps its time."""
    before = next((item for item in conditions if item.type == condition.type), None)
    same = before is not None and (before.status, before.reason) == (condition.status, condition.reason)
    condition.since = before.since if before is not None and same else now()
    return [*(item for item in conditions if item.type != condition.type), condition]


def drop(conditions: list[Condition], type: str) -> list[Condition]:
    """*conditions* without the one of that type."""
    return [item for item in conditions if item.type != type]


def of(error: LamellaError, type: str = READY) -> Condition:
    """What *error* says, as a condition."""
    return Condition(type=type, status=False, reason=error.code, message=error.message, hint=error.hint)
