"""The host: a machine, what it has and what it can do."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.resource import Condition, Resource
from lamella.model.sharing import Sharing
from lamella.model.storage import PoolStatus
from lamella.model.topology import Topology


class Capability(msgspec.Struct, kw_only=True):
    """Something that a host can or cannot do; ``reason`` says how that was found out."""

    name: str
    available: bool
    value: str = ""
    reason: str = ""


class Overcommit(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How often what a host has, less its reserve, may be handed out as ceilings; guarantees never exceed it.

    Processors are modestly so, memory not at all until an operator says otherwise: memory that was handed out is used.
    """

    cpu: Annotated[float, Meta(ge=1, le=1000)] = 2.0
    memory: Annotated[float, Meta(ge=1, le=1000)] = 1.0


class Reserve(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What stays the host's own: milli-cores and bytes."""

    cpu: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    memory: Annotated[int, Meta(ge=0, le=1 << 50)] = 0


class SamePages(StrEnum):
    """Whose equal pages may be one (KSM)."""

    OFF = "off"
    SAME_PROJECT = "same-project"
    ALL = "all"


class Copies(StrEnum):
    """Who may begin as a copy of a machine that booted before, and shares its memory's pages with the others: nobody, copies within one
    project, or all of the host's. Explicit templates are always their project's own."""

    OFF = "off"
    SAME_PROJECT = "same-project"
    ALL = "all"


class HostSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``address`` is where control reaches the agent (``https://…``); empty when they share one process. ``ksm`` is whose equal pages are
    merged, ``huge_pages`` how many are set apart, by their size (``2MiB``); ``None`` leaves each as the host has it. ``copies`` is who
    begins as a copy of a machine that booted before, without naming a template."""

    address: str = ""
    overcommit: Overcommit = Overcommit()
    reserve: Reserve = Reserve()
    ksm: SamePages | None = None
    copies: Copies = Copies.SAME_PROJECT
    huge_pages: dict[str, Annotated[int, Meta(ge=0, le=1 << 32)]] | None = None


class Underlay(msgspec.Struct, kw_only=True, frozen=True):
    """Where other hosts send what is for a host's instances: an IPv4 address of the host, and the MTU of the link that has it."""

    address: str
    mtu: int


class HostStatus(msgspec.Struct, kw_only=True):
    """``cpu`` is milli-cores, ``memory`` bytes. ``boot_id`` is the kernel's. ``pools`` is the room in each pool, by name. Without an
    ``underlay`` its networks end at the host. ``topology`` is what its processors, caches and memory were when it came;
    ``sharing`` what its instances share, when it was asked."""

    phase: str = "pending"
    cpu: int = 0
    memory: int = 0
    architecture: str = ""
    kernel: str = ""
    boot_id: str = ""
    capabilities: list[Capability] = []
    pools: dict[str, PoolStatus] = {}
    underlay: Underlay | None = None
    topology: Topology | None = None
    sharing: Sharing | None = None
    seen_at: datetime | None = None
    conditions: list[Condition] = []


Host = Resource[HostSpec, HostStatus]
