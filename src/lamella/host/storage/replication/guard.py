"""What is not done with a volume while it is replicated, because the replica would not follow. Pure."""

from collections.abc import Sequence

from lamella.host.storage.replication.journal import Journal
from lamella.model.errors import Conflict
from lamella.model.storage_requests import (
    AnyStorageRequest,
    DeleteVolume,
    MoveVolume,
    RekeyVolume,
    ResizeVolume,
    RestoreSnapshot,
    TakeSnapshot,
)

# What a replica cannot do by itself.
_WORDS = {
    DeleteVolume: "removed",
    MoveVolume: "moved",
    RekeyVolume: "given another key",
    ResizeVolume: "resized",
    RestoreSnapshot: "restored",
    TakeSnapshot: "snapshotted",
}
# What its source cannot do either.
_SOURCE = (DeleteVolume, MoveVolume, RekeyVolume, RestoreSnapshot)


def refuse(request: AnyStorageRequest, journals: Sequence[Journal]) -> None:
    """:raise Conflict: when *request* would take source and replica apart."""
    word = next((text for kind, text in _WORDS.items() if isinstance(request, kind)), "")
    if not word:
        return
    for id in _named(request):
        for journal in journals:
            if journal.promoted_at is not None:
                continue
            if id == journal.target.id:
                raise Conflict(
                    f"volume {journal.target.name} is the replica of {journal.source.name}",
                    hint=f"lamella replication rm {journal.replication.name}, or promote it, first",
                )
            if id == journal.source.id and isinstance(request, _SOURCE):
                raise Conflict(
                    f"volume {journal.source.name} cannot be {word} while it is replicated",
                    hint=f"lamella replication rm {journal.replication.name} first",
                )


def _named(request: AnyStorageRequest) -> list[str]:
    if isinstance(request, (TakeSnapshot, RestoreSnapshot)):
        return [volume.id for volume in request.volumes]
    if isinstance(request, (DeleteVolume, MoveVolume, RekeyVolume, ResizeVolume)):
        return [request.volume.id]
    return []
