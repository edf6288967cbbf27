"""What is left to do about a pool, a volume or a snapshot, from its row alone. Pure."""

from enum import StrEnum

from lamella.model.kinds import AnyResource
from lamella.model.storage import StoragePhase


class Step(StrEnum):
    MAKE = "make"
    CHANGE = "change"
    REMOVE = "remove"


def next_step(row: AnyResource) -> Step | None:
    """The step that brings *row* nearer to what was asked; ``None`` when it is there, or nothing can be done."""
    phase = row.status.phase
    if row.kind == "volume" and row.spec.owner is not None:
        # An instance's own volumes are made and removed with it, by its host.
        return None
    if phase is StoragePhase.DELETING:
        return Step.REMOVE
    if phase is StoragePhase.PENDING:
        return Step.MAKE
    if row.kind == "volume" and phase is StoragePhase.READY and row.status.observed_generation < row.generation:
        return Step.CHANGE
    if row.kind == "snapshot" and phase is StoragePhase.READY and row.status.memory and not row.spec.memory:
        return Step.CHANGE
    return None
