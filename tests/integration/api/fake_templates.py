"""Templates of the layer in memory; what they may be is the real rule."""

from typing import Any

import msgspec
from fake_part import Part

from lamella.control.templates.recipe import check_recipe
from lamella.model.ids import check_name
from lamella.model.template import TemplatePhase, TemplateStatus


class FakeTemplates(Part):
    async def create(self, who: Any, project: str, body: Any, *, wait: float, idempotency_key: str | None) -> Any:
        name = body.name or f"template-{self.layer.revision}"
        check_name(name)
        check_recipe(body.spec)
        status = TemplateStatus(phase=TemplatePhase.READY)
        return self.new("template", name, msgspec.structs.replace(body.spec, epoch=0), status, project, body.labels)

    async def rebuild(self, who: Any, project: str, name: str, *, wait: float) -> Any:
        row = self.layer._find(project, "template", name)
        return self.layer._put(
            msgspec.structs.replace(row, spec=msgspec.structs.replace(row.spec, epoch=row.spec.epoch + 1)), "updated"
        )
