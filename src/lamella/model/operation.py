"""Operations (long changes, with progress), events (what happened) and projects."""

from datetime import datetime
from enum import StrEnum

import msgspec

from lamella.model.resource import Resource
from lamella.model.storage_report import Report


class OperationPhase(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class OperationSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``verb`` on ``subject`` (kind/name), asked by ``principal``. ``arguments`` are what a restarted daemon has to know to go on."""

    verb: str
    subject: str
    principal: str = ""
    arguments: dict[str, str] = {}


class OperationStatus(msgspec.Struct, kw_only=True):
    """``done`` and ``total`` are bytes or steps as ``unit`` says; ``total`` 0 is not known. ``result`` names what was made;
    ``report`` is what a check found; ``made`` are the names of several that were made, and ``pause`` is for how many seconds what they were
    made of stood still."""

    phase: OperationPhase = OperationPhase.RUNNING
    step: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    result: str = ""
    report: Report | None = None
    made: list[str] = []
    pause: float = 0.0
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
    """``firewall`` is the id of the one that guards every new NIC which names none itself."""

    description: str = ""
    firewall: str = ""


class ProjectStatus(msgspec.Struct, kw_only=True):
    pass


Project = Resource[ProjectSpec, ProjectStatus]
