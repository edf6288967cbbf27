"""Finding a template, and what of it can be copied now."""

from lamella.control.storage.conditions import READY
from lamella.model.errors import Conflict, NotFound, error_for
from lamella.model.image import Image, ImageSpec
from lamella.model.resource import new_resource
from lamella.model.storage import Snapshot
from lamella.model.template import Template, TemplatePhase
from lamella.store.store import Transaction


def find_template(tx: Transaction, project: str, name: str, *, field: str = "") -> Template:
    """By name in *project*, or by id. :raise NotFound: when there is none."""
    found = tx.get("template", project, name) or tx.by_id(name)
    if found is None or found.kind != "template" or found.project != project:
        raise NotFound(
            f"no template is called {name!r} in project {project}",
            hint=f"make it: lamella template create {name} --from IMAGE",
            field=field,
        )
    return found


def serving(tx: Transaction, template: Template) -> Snapshot:
    """The snapshot that copies of *template* begin with.

    :raise Conflict: when it has none yet. :raise LamellaError: why it could not be made.
    """
    status = template.status
    snapshot: Snapshot | None = tx.by_id(status.snapshot) if status.snapshot else None
    if snapshot is not None:
        return snapshot
    failed = next((item for item in status.conditions if item.type == READY and not item.status), None)
    if status.phase is TemplatePhase.FAILED and failed is not None:
        raise error_for(failed.reason)(
            f"template {template.name} could not be made: {failed.message}",
            hint=f"lamella template show {template.name}; lamella template rebuild {template.name}",
        )
    raise Conflict(
        f"template {template.name} is {status.phase}: there is nothing to copy yet",
        hint=f"wait until it is ready: lamella template show {template.name}",
        field="spec.template",
    )


def image_of(template: Template) -> Image | None:
    """The image that what can be copied of *template* was made of, as it was then: its name may mean another one by now."""
    status = template.status
    if status.image is None or status.recipe is None:
        return None
    return new_resource("image", status.recipe.image, ImageSpec(source=""), status.image)
