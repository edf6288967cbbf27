"""Operations (long changes, with progress), events (what happened) and projects."""

from datetime import datetime
from enum import StrEnum

import msgspec

from lamella.model.resource import Resource


class OperationPhase(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class OperationSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``verb`` on ``subject`` (kind/name), asked by ``principal``."""

    verb: str
    subject: str
    principal: str = ""


class OperationStatus(msgspec.Struct, kw_only=True):
    """``done`` and ``total`` are bytes or steps as ``unit`` says; ``total`` 0 is not known. ``result`` names what was made."""

    phase: OperationPhase = OperationPhase.RUNNING
    step: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    result: str = ""
    error_code: str = ""
    error: str = ""
    hint: str = ""
    finished_at: datetime | None = None


Operation = Resource[OperationSpec, OperationStatus]


class EventSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``type`` is dotted (``instance.started``); ``subject`` is the id and ``subject_name`` the kind/name of whom it befell."""

    type: str
    subject: str
    subject_name: str
    message: str
    facts: dict[str, str] = {}


class EventStatus(msgspec.Struct, kw_only=True):
    pass


Event = Resource[EventSpec, EventStatus]


class ProjectSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    description: str = ""


class ProjectStatus(msgspec.Struct, kw_only=True):
    pass


Project = Resource[ProjectSpec, ProjectStatus]
