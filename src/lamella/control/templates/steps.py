"""What is left to do about a template, from the rows as they are now: pure.

A builder's stages are written down before they are begun. What a daemon left in the middle of a warm-up is not gone on with: how far it
was, nobody knows.
"""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from lamella.control.storage.conditions import READY
from lamella.model.instance import Instance, Phase
from lamella.model.resource import Condition
from lamella.model.storage import Snapshot, StoragePhase
from lamella.model.template import Stage, Template

# Seconds until what could not be done for want of room, or because somebody was away, is tried again.
AGAIN = 15.0
# What passes by itself.
PASSING = frozenset({"unavailable", "no-room"})


class Step(StrEnum):
    BEGIN = "begin"
    WARM = "warm"
    KEEP = "keep"
    ADOPT = "adopt"
    DROP = "drop"
    FAIL = "fail"


class View(msgspec.Struct, kw_only=True, frozen=True):
    """``key`` is of what the template is to be made of now; empty when that is not known. ``warming`` says that its warm-up goes on in this
    daemon. ``snapshot`` is the one that is taken of the builder."""

    template: Template
    key: str
    builder: Instance | None = None
    snapshot: Snapshot | None = None
    warming: bool = False


def next_step(view: View, at: datetime) -> Step | None:
    """The step that brings it nearer to being ready at the time *at*; ``None`` when it is, or somebody else has to do something first."""
    status = view.template.status
    if status.stage is not Stage.NONE:
        return _of_builder(view)
    if not view.key or view.key in (status.key, status.refused):
        return None
    failed = next((item for item in status.conditions if item.type == READY and not item.status), None)
    if failed is not None and failed.since is not None and failed.reason in PASSING:
        return Step.BEGIN if at >= failed.since + timedelta(seconds=AGAIN) else None
    return Step.BEGIN


def _of_builder(view: View) -> Step | None:
    status, builder = view.template.status, view.builder
    if builder is None or builder.deleted_at is not None or (view.key and status.wanted != view.key):
        return Step.DROP
    if status.stage is Stage.KEEPING:
        phase = view.snapshot.status.phase if view.snapshot is not None else StoragePhase.FAILED
        if phase is StoragePhase.READY:
            return Step.ADOPT
        # A snapshot that could not be taken may have been removed already: either way there is none.
        return Step.FAIL if phase is StoragePhase.FAILED else Step.KEEP
    if status.stage is Stage.WARMING:
        return None if view.warming else Step.DROP
    if builder.status.phase is Phase.READY:
        return Step.WARM
    return Step.FAIL if why_failed(builder) is not None else None


def why_failed(builder: Instance) -> Condition | None:
    """Why *builder* could not be made; ``None`` when it can be yet."""
    if builder.status.phase is not Phase.FAILED:
        return None
    failed = (item for item in builder.status.conditions if item.type == READY and not item.status)
    return next(failed, Condition(type=READY, status=False, reason="internal", message="it could not be made"))
