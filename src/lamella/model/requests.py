"""Bodies of requests and of answers that are not resources. One set of types from the client's library to the planners."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from lamella.model.instance import Decision, InstanceSpec
from lamella.model.kinds import AnyResource

LabelKey = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]*$(?!\n)")]
LabelValue = Annotated[str, Meta(max_length=512, pattern=r"^[^\x00]*$")]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=64)]


class Principal(msgspec.Struct, kw_only=True, frozen=True):
    """Who asks: ``name`` for people (``unix:root``, ``host:alpha``), ``kind`` is ``user`` or ``host``, ``admin`` may do all."""

    name: str
    kind: str = "user"
    admin: bool = False


class InstanceCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``name`` is chosen when it is left out. ``spec.power`` stopped makes it and does not start it."""

    name: Annotated[str, Meta(max_length=63)] | None = None
    labels: Labels = {}
    spec: InstanceSpec


class ResourcePatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON merge patch (RFC 7396) over labels and spec: ``null`` removes, what is left out stays."""

    labels: dict[LabelKey, LabelValue | None] | UnsetType = UNSET
    spec: dict[str, Any] | UnsetType = UNSET


class ResourcePut(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole of spec and labels; a resource that is not there is made."""

    labels: Labels = {}
    spec: InstanceSpec


class InstanceFork(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``count`` copies, called ``NAME-1`` and so on as far as those names are free; ``name`` is the instance's unless it is given.
    ``labels`` are set beside the instance's own."""

    count: Annotated[int, Meta(ge=1, le=256)] = 1
    name: Annotated[str, Meta(min_length=1, max_length=58)] | None = None
    labels: Labels = {}


class StopRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``timeout`` in seconds until force; left out, the instance's own ``stop_timeout``."""

    timeout: Annotated[float, Meta(ge=0, le=86400)] | None = None


class KillRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``signal`` by name (``TERM``, ``SIGHUP``) or number."""

    signal: Annotated[str, Meta(pattern=r"^[A-Za-z0-9+-]{1,16}$(?!\n)")] = "KILL"


class ImageCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Bring an image in. ``verb`` is ``pull``, ``import`` or ``build``; ``name`` is what it will be called (left out: from the source)."""

    verb: Annotated[str, Meta(pattern=r"^(pull|import|build)$(?!\n)")]
    source: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
    name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    packages: Annotated[
        list[Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9+.:-]*$(?!\n)", max_length=128)]], Meta(max_length=1024)
    ] = []
    disk: bool = False
    initrd: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    username: str = ""
    password: str = ""
    insecure: bool = False


class Items(msgspec.Struct, kw_only=True):
    """One page. ``revision`` is where a watch begins so that nothing is missed."""

    items: list[AnyResource]
    cursor: str = ""
    revision: int = 0


class Explanation(msgspec.Struct, kw_only=True):
    """How an instance came to be as it is, oldest first, and what the next step would be (empty: it is as it should be)."""

    instance: str
    decisions: list[Decision]
    next_steps: list[str] = []


class Finding(msgspec.Struct, kw_only=True):
    """One thing that ``doctor`` looked at. ``level`` is ``ok``, ``note``, ``warning`` or ``problem``."""

    level: str
    subject: str
    message: str
    hint: str = ""


class Diagnosis(msgspec.Struct, kw_only=True):
    findings: list[Finding]


class Freed(msgspec.Struct, kw_only=True):
    """What garbage collection gave back, in bytes."""

    bytes: int


class About(msgspec.Struct, kw_only=True):
    """Which layer answers."""

    version: str
    role: str
    revision: int
    you: str
