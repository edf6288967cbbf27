"""What the API asks of the layer about templates."""

from typing import Protocol

from lamella.model.requests import Principal
from lamella.model.template import Template
from lamella.model.template_bodies import TemplateCreate


class TemplatesFace(Protocol):
    """Listing, reading, changing and removing go through the verbs that every kind has."""

    async def create(
        self, who: Principal, project: str, body: TemplateCreate, *, wait: float, idempotency_key: str | None
    ) -> Template: ...

    async def rebuild(self, who: Principal, project: str, name: str, *, wait: float) -> Template:
        """Make it anew, though nothing has changed."""
        ...
