"""What is written about a template, each in one transaction: its builder begun, warmed, kept, adopted, given up. Every change looks again
at what is there: somebody may have removed it, or asked for another one, since it was decided."""

import msgspec

from lamella.control.copying import of_instance
from lamella.control.creating import insert_new
from lamella.control.events import record
from lamella.control.lookup import find_image
from lamella.control.naming import new_suffix
from lamella.control.storage.conditions import READY, drop, of
from lamella.control.storage.holding import outlive
from lamella.control.templates.giving_way import send_away, waits
from lamella.control.templates.recipe import key_of, waiting_spec
from lamella.control.templates.steps import PASSING
from lamella.model.errors import LamellaError, Unavailable
from lamella.model.host import Host
from lamella.model.instance import Instance
from lamella.model.resource import new_resource, now
from lamella.model.storage import Snapshot, SnapshotSpec, SnapshotStatus, StoragePhase
from lamella.model.template import Stage, Template, TemplatePhase, TemplateSpec
from lamella.store.store import Transaction

# Instances that bear it are a template's own, of which nobody but the layer makes use.
BUILDER = "lamella.builder"


def wanted_key(tx: Transaction, template: Template, host: str = "") -> str:
    """The key of what *template* is to be made of now, on its host, or on *host*; empty when there is no such image or host."""
    known: Host | None = tx.by_id(host or template.status.host or "")
    if known is None:
        return ""
    try:
        image = find_image(tx, template.project, template.spec.image)
    except LamellaError:
        return ""
    return key_of(template.spec, image.status.digest, known)


def begin(tx: Transaction, id: str, *, seed: str) -> None:
    """Have a builder made, where there is none.

    :raise LamellaError: when there is no room, no host or no image for it.
    """
    template: Template | None = tx.by_id(id)
    if template is None or template.status.stage is not Stage.NONE:
        return
    status = template.status
    own = status.host if status.host and tx.by_id(status.host) is not None else ""
    name = f"{template.name[:40]}-builder-{new_suffix()}"
    builder = insert_new(
        tx, template.project, name, {BUILDER: template.name}, waiting_spec("", template.spec), seed=seed, host=own
    )
    builder.status.template = template.id
    builder = tx.update(builder)
    status.host = builder.status.host
    status.builder, status.stage, status.keeping = builder.id, Stage.MAKING, ""
    status.wanted = wanted_key(tx, template)
    status.phase = TemplatePhase.BUILDING
    record(tx, template, "template.building", f"template {template.name} is being made from {template.spec.image}")
    tx.update(template)


def warming(tx: Transaction, id: str, builder: str) -> TemplateSpec | None:
    """Write down that the warm-up begins; the recipe, or ``None`` when it is not to."""
    template = _building(tx, id, builder, Stage.MAKING)
    if template is None:
        return None
    template.status.stage = Stage.WARMING
    tx.update(template)
    return template.spec


def keeping(tx: Transaction, id: str, builder: str) -> str:
    """The warm-up has ended well: have its disk and memory kept. The id of the snapshot; empty when it is not to be."""
    template = _building(tx, id, builder, Stage.WARMING)
    made: Instance | None = tx.by_id(builder)
    if template is None or made is None or not made.status.volume:
        return ""
    spec = SnapshotSpec(instance=made.id, volumes=[made.status.volume], memory=True, owner=template.id)
    status = SnapshotStatus(host=made.status.host, origin=of_instance(made))
    snapshot: Snapshot = tx.insert(
        new_resource("snapshot", f"{made.name}@warm", spec, status, project=template.project)
    )
    template.status.stage, template.status.keeping = Stage.KEEPING, snapshot.id
    tx.update(template)
    return snapshot.id


def adopt(tx: Transaction, id: str, builder: str) -> None:
    """Copies are made of the new snapshot from now on; the builder goes.

    :raise NotFound: when there is no such image any more. :raise Unavailable: when there is no such host any more.
    """
    template = _building(tx, id, builder, Stage.KEEPING)
    if template is None:
        return
    status = template.status
    snapshot: Snapshot | None = tx.by_id(status.keeping)
    made: Instance | None = tx.by_id(builder)
    image = find_image(tx, template.project, template.spec.image)
    if not (key := wanted_key(tx, template)):
        raise Unavailable(f"the host of template {template.name} is gone")
    if snapshot is None or made is None or key != status.wanted:
        return
    if status.snapshot:
        part_with(tx, status.snapshot)
    if snapshot.status.origin is not None:
        # What it was launched as follows from what it asks for: copies ask for the same.
        snapshot.status.origin = msgspec.structs.replace(snapshot.status.origin, cpu=None, memory=None)
        snapshot = tx.update(snapshot)
    status.snapshot, status.size, status.key = snapshot.id, snapshot.status.memory, status.wanted
    status.image, status.recipe = image.status, template.spec
    status.phase, status.built_at, status.refused = TemplatePhase.READY, now(), ""
    status.conditions = drop(status.conditions, READY)
    status.observed_generation = template.generation
    _dismiss(tx, made)
    _no_builder(template)
    record(tx, template, "template.ready", f"template {template.name} is ready")
    tx.update(template)


def drop_builder(tx: Transaction, id: str) -> None:
    """What is being made is not wanted any more, or nobody knows how far it is."""
    template: Template | None = tx.by_id(id)
    if template is not None and template.status.stage is not Stage.NONE:
        _give_up(tx, template)
        tx.update(template)


def fail(tx: Transaction, id: str, error: LamellaError) -> None:
    """It cannot be made: say why, and leave nothing of it. What could be copied before can be copied still."""
    template: Template | None = tx.by_id(id)
    if template is None:
        return
    status = template.status
    wanted, warming = status.wanted or wanted_key(tx, template), status.stage is Stage.WARMING
    if status.stage is not Stage.NONE:
        _give_up(tx, template)
    condition = of(error)
    before = next((item for item in status.conditions if item.type == READY), None)
    status.conditions = [*drop(status.conditions, READY), condition]
    condition.since = now()
    same = before is not None and before.message == condition.message
    # A warm-up that was cut off twice in the same way will be a third time.
    status.refused = "" if error.code in PASSING and not (warming and same) else wanted
    status.phase = TemplatePhase.READY if status.snapshot else TemplatePhase.FAILED
    status.observed_generation = template.generation
    if not same:
        record(tx, template, "template.failed", f"template {template.name} cannot be made: {error.message}")
    tx.update(template)


def settle(tx: Transaction, id: str) -> None:
    """Nothing is to be made for what was changed."""
    template: Template | None = tx.by_id(id)
    if template is not None and template.status.stage is Stage.NONE:
        template.status.observed_generation = template.generation
        if template.status.snapshot:
            template.status.phase = TemplatePhase.READY
        tx.update(template)


def part_with(tx: Transaction, snapshot: str) -> None:
    """Nothing is copied from *snapshot* (an id) any more: it goes when nobody needs it."""
    found: Snapshot | None = tx.by_id(snapshot)
    if found is None or found.deleted_at is not None:
        return
    if found.status.phase is StoragePhase.READY:
        found.spec.owner, found.spec.passing = None, True
    else:
        found.status.phase, found.deleted_at = StoragePhase.DELETING, now()
    tx.update(found)


def remove(tx: Transaction, template: Template) -> None:
    """Forget *template*: copies that wait go, those that were taken live on, and what they stand on stays until they are gone."""
    for instance in tx.list("instance"):
        if instance.status.template == template.id and waits(instance):
            send_away(tx, instance, f"template {template.name} is removed")
    if template.status.stage is not Stage.NONE:
        _give_up(tx, template)
    if template.status.snapshot:
        part_with(tx, template.status.snapshot)
    tx.delete(template.id)


def to_sweep(tx: Transaction, templates: list[Template], instances: list[Instance]) -> list[str]:
    """Ids of what :func:`sweep` would have go: a look costs less than a change."""
    builders = _unneeded_builders(templates, instances)
    return [*_unneeded_snapshots(templates, tx.list("snapshot")), *(item.id for item in builders)]


def sweep(tx: Transaction) -> None:
    """Builders that nothing needs go, and snapshots that were taken for a template which does not need them."""
    templates: list[Template] = tx.list("template")
    for id in _unneeded_snapshots(templates, tx.list("snapshot")):
        part_with(tx, id)
    for builder in _unneeded_builders(templates, tx.list("instance")):
        _dismiss(tx, builder)


def _unneeded_snapshots(templates: list[Template], snapshots: list[Snapshot]) -> list[str]:
    needed = {id for item in templates for id in (item.status.snapshot, item.status.keeping)}
    return [item.id for item in snapshots if (item.spec.owner or "").startswith("tmpl_") and item.id not in needed]


def _unneeded_builders(templates: list[Template], instances: list[Instance]) -> list[Instance]:
    builders = {item.status.builder for item in templates}
    return [
        item
        for item in instances
        if BUILDER in item.labels and item.status.template and item.deleted_at is None and item.id not in builders
    ]


def _building(tx: Transaction, id: str, builder: str, stage: Stage) -> Template | None:
    template: Template | None = tx.by_id(id)
    if template is None or (template.status.builder, template.status.stage) != (builder, stage):
        return None
    return template


def _give_up(tx: Transaction, template: Template) -> None:
    status = template.status
    if status.keeping:
        part_with(tx, status.keeping)
    builder: Instance | None = tx.by_id(status.builder)
    if builder is not None:
        _dismiss(tx, builder)
    _no_builder(template)


def _dismiss(tx: Transaction, builder: Instance) -> None:
    """It goes; its disk stays for as long as copies stand on it."""
    if builder.deleted_at is None:
        builder.deleted_at, builder.spec.grace = now(), 0
        outlive(tx, builder)
        tx.update(builder)


def _no_builder(template: Template) -> None:
    status = template.status
    status.builder, status.wanted, status.keeping, status.stage = "", "", "", Stage.NONE
