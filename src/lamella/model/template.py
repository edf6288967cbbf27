"""Templates: machines that were booted, warmed up and frozen once, and of which instances begin as copies."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.instance import Argument, Isolation, VariableName
from lamella.model.resource import Condition, Resource


class TemplatePhase(StrEnum):
    """``BUILDING`` anew too, when what it was made of has changed; the copy before serves until the new one is ready."""

    PENDING = "pending"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class TemplateSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What it is made of, as :class:`~lamella.model.instance.InstanceSpec` has it, and how many copies wait for their command.

    ``warmup`` is run in it once, as root and without a network, before it is frozen. ``warm`` is how many copies are held ready, at
    most; with ``by_rate`` as many as arrive in the time that one takes to make, and ``warm`` is the ceiling.
    """

    image: Annotated[str, Meta(min_length=1, max_length=512)]
    isolation: Isolation = Isolation.MICROVM
    cpu: Annotated[int, Meta(ge=10, le=1_000_000)] | None = None
    memory: Annotated[int, Meta(ge=4 << 20, le=1 << 50)] | None = None
    pids: Annotated[int, Meta(ge=1, le=4_000_000)] = 4096
    disk: Annotated[int, Meta(ge=1 << 20, le=1 << 56)] | None = None
    environment: dict[VariableName, Argument] = {}
    warmup: list[Argument] = []
    warm: Annotated[int, Meta(ge=0, le=1000)] = 0
    by_rate: bool = False


class TemplateStatus(msgspec.Struct, kw_only=True):
    """``builder`` is the id of the instance that is warmed up, ``snapshot`` that of its disk and memory, of which copies are made, with
    ``size`` bytes of memory. ``key`` says what it was made of; another key is a reason to make it anew. ``ready`` and ``copies`` count the
    instances that wait and all that were made of it."""

    phase: TemplatePhase = TemplatePhase.PENDING
    host: str | None = None
    image_digest: str = ""
    key: str = ""
    builder: str = ""
    snapshot: str = ""
    size: int = 0
    ready: int = 0
    copies: int = 0
    built_at: datetime | None = None
    observed_generation: int = 0
    conditions: list[Condition] = []


Template = Resource[TemplateSpec, TemplateStatus]
