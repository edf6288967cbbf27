"""The verbs on templates: each writes intent in one transaction; the keeper makes it so, and whoever asked may wait for that."""

import msgspec

from lamella.control.admission import check_spec
from lamella.control.bulletin import Bulletin
from lamella.control.changing import network_named
from lamella.control.events import record
from lamella.control.fitting import check_image
from lamella.control.lookup import find_image, need_project
from lamella.control.merging import merge_labels, merge_patch
from lamella.control.naming import new_name
from lamella.control.storage.conditions import READY
from lamella.control.templates import rows
from lamella.control.templates.lookup import find_template
from lamella.control.templates.recipe import NO_NETWORK, check_recipe, waiting_spec
from lamella.model.errors import DeadlineExceeded, Invalid, error_for
from lamella.model.ids import check_name
from lamella.model.image import SCRATCH
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource
from lamella.model.template import Stage, Template, TemplatePhase, TemplateSpec, TemplateStatus
from lamella.model.template_bodies import TemplateCreate
from lamella.model.validation import invalid
from lamella.store.store import Audit, Change, Store, Transaction


class Templates:
    """Intent for templates. Whoever may write in a project may make them there."""

    def __init__(self, store: Store, bulletin: Bulletin) -> None:
        self._store = store
        self._bulletin = bulletin

    async def create(
        self, who: Principal, project: str, body: TemplateCreate, *, wait: float, idempotency_key: str | None
    ) -> Template:
        """:raise NotFound: when there is no such image or network. :raise Conflict: when the name is taken.
        :raise Unsupported: when its level has no memory that could be kept. With *wait*, what stood in its way; it is there to look at.
        """
        if body.name is not None:
            check_name(body.name)

        def write(tx: Transaction) -> Template:
            space = f"idempotency:{project}"
            before = tx.by_id(tx.claims(space).get(idempotency_key, "")) if idempotency_key is not None else None
            if before is not None:
                return before
            need_project(tx, project)
            _check(tx, project, body.spec)
            name = body.name or _unused_name(tx, project)
            spec = msgspec.structs.replace(body.spec, epoch=0)
            template: Template = tx.insert(
                new_resource("template", name, spec, TemplateStatus(), project=project, labels=body.labels)
            )
            if idempotency_key is not None:
                tx.claim(space, idempotency_key, template.id)
            record(tx, template, "template.created", f"{who.name} created template {name} from {spec.image}")
            tx.audit(Audit(principal=who.name, verb="create", subject=f"template/{project}/{name}"))
            return template

        return await self._after(await self._store.write(write), wait)

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None, wait: float
    ) -> Template:
        """Another recipe has it built anew; how many copies wait is so at once."""

        def write(tx: Transaction) -> Template:
            template = find_template(tx, project, name)
            if isinstance(body.labels, dict):
                merge_labels(template.labels, body.labels)
            if isinstance(body.spec, dict):
                if "epoch" in body.spec:
                    raise Invalid(
                        "spec.epoch is not set by hand", hint="lamella template rebuild NAME", field="spec.epoch"
                    )
                try:
                    merged = merge_patch(msgspec.to_builtins(template.spec), body.spec)
                    wanted = msgspec.convert(merged, TemplateSpec)
                except msgspec.ValidationError as error:
                    raise invalid(str(error), "the change", "spec") from None
                if wanted != template.spec:
                    _check(tx, project, wanted)
                    template.spec = wanted
                    record(tx, template, "template.changed", f"{who.name} changed template {template.name}")
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"template/{project}/{template.name}"))
            return tx.update(template, expected=expected)

        return await self._after(await self._store.write(write), wait)

    async def rebuild(self, who: Principal, project: str, name: str, *, wait: float) -> Template:
        """Make it anew, though nothing has changed; what could be copied before can be until then."""

        def write(tx: Transaction) -> Template:
            template = find_template(tx, project, name)
            template.spec.epoch += 1
            tx.audit(Audit(principal=who.name, verb="rebuild", subject=f"template/{project}/{template.name}"))
            return tx.update(template)

        return await self._after(await self._store.write(write), wait)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None) -> None:
        """Forget it. Copies that wait go with it; those that were taken live on."""

        def write(tx: Transaction) -> None:
            template = find_template(tx, project, name)
            if expected is not None:
                tx.update(template, expected=expected)
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"template/{project}/{template.name}"))
            record(tx, template, "template.removed", f"{who.name} removed template {template.name}")
            rows.remove(tx, template)

        await self._store.write(write)

    async def _after(self, template: Template, wait: float) -> Template:
        """*template* when it has come to rest.

        :raise DeadlineExceeded: when it has not within *wait* seconds. :raise LamellaError: why it could not be made.
        """
        if wait <= 0:
            return template
        latest = template

        async def first() -> bool:
            nonlocal latest
            latest = await self._store.by_id(template.id)
            return _rests(latest)

        def check(change: Change) -> bool:
            nonlocal latest
            latest = change.resource
            return change.action == "deleted" or _rests(latest)

        try:
            await self._bulletin.until({template.id}, first, check, timeout=wait, after=template.revision)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"template {template.name} was not ready within {wait:g} s: it is {latest.status.phase}",
                hint=f"it goes on: lamella template show {template.name}",
            ) from error
        failed = next((item for item in latest.status.conditions if item.type == READY and not item.status), None)
        if failed is not None:
            raise error_for(failed.reason)(
                f"template {template.name} could not be made: {failed.message}", hint=failed.hint
            )
        return latest


def _rests(template: Template) -> bool:
    status = template.status
    seen = status.observed_generation >= template.generation and status.stage is Stage.NONE
    return seen and status.phase in (TemplatePhase.READY, TemplatePhase.FAILED)


def _check(tx: Transaction, project: str, spec: TemplateSpec) -> None:
    check_recipe(spec)
    made = waiting_spec("", spec)
    check_spec(made)
    image = find_image(tx, project, spec.image)
    check_image(made, image, scratch=image.status.digest == SCRATCH)
    if spec.network != NO_NETWORK:
        network_named(tx, project, spec.network, field="spec.network")


def _unused_name(tx: Transaction, project: str) -> str:
    while True:
        name = new_name()
        if tx.get("template", project, name) is None:
            return name


def counted(tx: Transaction, templates: list[Template]) -> list[Template]:
    """*templates* with how many copies of each there are now."""
    if not templates:
        return []
    ready: dict[str, int] = {}
    copies: dict[str, int] = {}
    for instance in tx.list("instance"):
        status = instance.status
        if not status.template or rows.BUILDER in instance.labels or instance.deleted_at is not None:
            continue
        if instance.spec.power == "ready":
            ready[status.template] = ready.get(status.template, 0) + (status.phase == "ready")
        else:
            copies[status.template] = copies.get(status.template, 0) + 1
    return [
        msgspec.structs.replace(
            item,
            status=msgspec.structs.replace(item.status, ready=ready.get(item.id, 0), copies=copies.get(item.id, 0)),
        )
        for item in templates
    ]
