"""An instance of a template: one of the copies that wait, or a fresh one. In the transaction of whoever asks for it."""

from collections.abc import Iterable

import msgspec

from lamella.control.admission import check_spec, command_of
from lamella.control.copying import begin_as_copy
from lamella.control.fitting import normalise
from lamella.control.lookup import unused_name
from lamella.control.network.firewalls import firewalls_of
from lamella.control.templates.lookup import find_template, image_of, serving
from lamella.control.templates.recipe import agrees, shape
from lamella.model.errors import Invalid
from lamella.model.image import Image
from lamella.model.instance import Decision, Instance, InstanceSpec, Phase, Power
from lamella.model.network import Port
from lamella.model.resource import Labels, now
from lamella.model.template import Template
from lamella.store.store import Transaction


def begin_of_template(
    tx: Transaction, project: str, name: str | None, labels: Labels, asked: InstanceSpec, *, seed: str
) -> Instance:
    """Have an instance called *name* (``None``: one is chosen) be a copy of the template that *asked* names: one that waits, where one
    agrees in all that cannot be chosen when it is taken; else a fresh one. *seed* as for :class:`~lamella.control.instances.Instances`.

    The caller records the event and the audit. A retried transaction calls it anew: *asked* stays as it is.

    :raise NotFound: when there is no such template. :raise Conflict: when it is not ready, or the name is taken.
    :raise Unsupported: when *asked* is another machine than it. :raise NoRoom: when its host has none.
    """
    template = find_template(tx, project, asked.template or "", field="spec.template")
    snapshot = serving(tx, template)
    spec = msgspec.convert(msgspec.to_builtins(asked), InstanceSpec)
    spec.template = template.name
    shape(spec, template.name, template.status.recipe or template.spec)
    normalise(spec)
    check_spec(spec)
    image = image_of(template)
    if spec.power is Power.RUNNING and image is not None:
        member = _member(tx, template, spec)
        if member is not None:
            return _take(tx, template, member, name, labels, spec, image)
    name = name or unused_name(tx, project)
    made = begin_as_copy(tx, snapshot, name, seed=seed, spec=spec, labels=labels, image=image, template=template.id)
    made.status.decisions = [*made.status.decisions, _shared(template)]
    if spec.power is Power.READY:
        tx.claim(_space(template), made.id, made.id)
    return tx.update(made)


def waiting(tx: Transaction, template: str) -> Iterable[str]:
    """Ids of the copies of *template* (an id) that wait, or are being made to."""
    return tx.claims(f"waits:{template}")


def _member(tx: Transaction, template: Template, spec: InstanceSpec) -> Instance | None:
    """One that waits and can become what *spec* says: the one that has waited longest."""
    guards = [firewalls_of(tx, template.project, nic.firewalls) for nic in spec.nics]
    for id in sorted(waiting(tx, template.id)):
        member: Instance | None = tx.by_id(id)
        if member is None or member.deleted_at is not None or member.status.phase is not Phase.READY:
            continue
        beginning = member.status.beginning
        if beginning is None or beginning.snapshot != template.status.snapshot:
            continue
        port: Port | None = tx.by_id(member.status.port) if member.status.port else None
        if agrees(member.spec, spec) and (port is None or [port.spec.firewalls] == guards):
            return member
    return None


def _take(
    tx: Transaction,
    template: Template,
    member: Instance,
    name: str | None,
    labels: Labels,
    spec: InstanceSpec,
    image: Image,
) -> Instance:
    command = command_of(spec, image)
    member = tx.rename(member.id, name or unused_name(tx, template.project))
    spec.epoch, spec.attach_epoch, spec.grace = 1, min(spec.attach_epoch, 1), None
    member.spec, member.labels = spec, dict(labels)
    kept = [item for item in member.status.decisions if item.what != "command"]
    taken = Decision(
        at=now(),
        what="begins as",
        chosen=f"a copy of template {template.name} that waited",
        because="one was ready, and agrees with what was asked in all but what it is told now",
    )
    told = Decision(
        at=now(), what="command", chosen=" ".join(command)[:200], because="what waits is told when it is taken"
    )
    member.status.decisions = [*kept, taken, told]
    tx.release(_space(template), member.id, member.id)
    return tx.update(member)


def _shared(template: Template) -> Decision:
    return Decision(
        at=now(),
        what="begins as",
        chosen=f"a copy of template {template.name}",
        because=f"the template was asked for; its memory is shared, copy on write, with that of other copies in project {template.project}",
    )


def _space(template: Template) -> str:
    return f"waits:{template.id}"


def check_not_by_hand(spec: InstanceSpec) -> None:
    """:raise Invalid: when *spec* asks for a power that nobody asks for by hand."""
    if spec.power in (Power.READY, Power.SUSPENDED):
        raise Invalid(
            f"an instance is not made {spec.power} by hand",
            hint="lamella template set NAME --warm N has copies wait" if spec.power is Power.READY else "run it first",
            field="spec.power",
        )
