"""Bodies of requests about templates."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.requests import Labels
from lamella.model.template import TemplateSpec


class TemplateCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``name`` is chosen when it is left out."""

    name: Annotated[str, Meta(max_length=63)] | None = None
    labels: Labels = {}
    spec: TemplateSpec
