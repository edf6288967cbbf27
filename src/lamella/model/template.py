"""Templates: machines that were booted, warmed up and frozen once, and of which instances begin as copies."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.image import ImageStatus
from lamella.model.instance import Argument, Isolation, VariableName
from lamella.model.resource import Condition, Resource


class TemplatePhase(StrEnum):
    """``BUILDING`` anew too, when what it was made of has changed; the copy before serves until the new one is ready. ``FAILED`` is one
    that has nothing to copy."""

    PENDING = "pending"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


class Stage(StrEnum):
    """How far a builder is: its machine is made, its warm-up runs, has run, and its memory is kept. A warm-up that was cut off is never
    taken for one that has run."""

    NONE = ""
    MAKING = "making"
    WARMING = "warming"
    KEEPING = "keeping"


class TemplateSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What it is made of, as :class:`~lamella.model.instance.InstanceSpec` has it, and how many copies wait for their command.

    ``warmup`` is run in it once, as root, before it is frozen. Copies have a NIC on ``network`` unless they say otherwise; with ``none``
    they have none. ``warm`` is how many copies are held ready, at most; with ``by_rate`` as many as arrive in the time that one takes to
    make, and ``warm`` is the ceiling. With ``idle`` it goes by itself when nobody has begun from it for so many seconds. ``epoch`` counts
    how often it was to be built anew; the layer keeps it.
    """

    image: Annotated[str, Meta(min_length=1, max_length=512)]
    isolation: Isolation = Isolation.MICROVM
    cpu: Annotated[int, Meta(ge=10, le=1_000_000)] | None = None
    memory: Annotated[int, Meta(ge=4 << 20, le=1 << 50)] | None = None
    pids: Annotated[int, Meta(ge=1, le=4_000_000)] = 4096
    disk: Annotated[int, Meta(ge=1 << 20, le=1 << 56)] | None = None
    network: Annotated[str, Meta(min_length=1, max_length=63)] = "default"
    environment: dict[VariableName, Argument] = {}
    warmup: Annotated[list[Argument], Meta(max_length=4096)] = []
    warm: Annotated[int, Meta(ge=0, le=1000)] = 0
    by_rate: bool = False
    idle: Annotated[float, Meta(ge=60, le=31_536_000)] | None = None
    epoch: Annotated[int, Meta(ge=0, le=1 << 53)] = 0


class TemplateStatus(msgspec.Struct, kw_only=True):
    """``snapshot`` is the id of that of its disk and memory, of which copies are made, with ``size`` bytes of memory; it was made of
    ``image`` by ``recipe``, and ``key`` is a digest of all that it was made of: another key is a reason to make it anew.

    ``builder`` is the id of the instance that is warmed up, of ``wanted`` (a key), and has come to ``stage``; ``keeping`` the id of the
    snapshot that is taken of it. ``refused`` is the key that could not be built. ``ready`` and ``copies`` count the instances that wait and
    all others that are copies of it; they are of the moment in which it was asked for."""

    phase: TemplatePhase = TemplatePhase.PENDING
    host: str | None = None
    image: ImageStatus | None = None
    recipe: TemplateSpec | None = None
    key: str = ""
    snapshot: str = ""
    size: int = 0
    builder: str = ""
    wanted: str = ""
    stage: Stage = Stage.NONE
    keeping: str = ""
    refused: str = ""
    ready: int = 0
    copies: int = 0
    built_at: datetime | None = None
    observed_generation: int = 0
    conditions: list[Condition] = []


Template = Resource[TemplateSpec, TemplateStatus]
