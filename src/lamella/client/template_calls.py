"""What the library asks about templates, as calls. Sizes and commands are as people write them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from lamella.client import routes, template_routes
from lamella.client.call import Call, answer
from lamella.client.wish import Cores, Size, cores, seconds, size
from lamella.model.errors import Invalid
from lamella.model.requests import ResourcePatch
from lamella.model.template import Template
from lamella.model.template_bodies import TemplateCreate

_encode = msgspec.json.Encoder().encode


class Wishes(TypedDict, total=False):
    """What may be said of a template beside its image.

    ``isolation`` is ``"microvm"`` unless said; ``cpu`` is cores, ``memory`` and ``disk`` bytes or ``"512MiB"``. ``warmup`` is the
    command that is run in it once, as root, before it is frozen: words, or one text for its shell. ``network`` is the one that its
    copies are on unless they say otherwise, or ``"none"``. ``warm`` copies wait for their command, with ``by_rate`` at most. ``idle`` is
    for how many seconds (or ``"1h"``) nobody may begin from it until it goes by itself; ``None``: it stays.
    """

    isolation: str
    cpu: Cores
    memory: Size
    disk: Size
    pids: int
    network: str
    environment: Mapping[str, str]
    warmup: Sequence[str] | str
    warm: int
    by_rate: bool
    idle: float | str | None


class Changes(Wishes, total=False):
    """What may be changed of one: all of :class:`Wishes`, and its image. ``None`` takes a label away."""

    image: str
    labels: Mapping[str, str | None]


def create(
    project: str, name: str | None, image: str, wishes: Wishes, *, labels: Mapping[str, str] | None, wait: float
) -> Call[Template]:
    """:raise Invalid: when a wish is not understood."""
    asked = {"name": name, "labels": dict(labels or {}), "spec": {"image": image, **spec(wishes)}}
    try:
        body = msgspec.convert(asked, TemplateCreate)
    except msgspec.ValidationError as error:
        raise Invalid(f"the template cannot be asked for: {error}") from error
    return Call(template_routes.create(project, _encode(body), wait=wait), answer(Template))


def change(project: str, name: str, changes: Changes, *, wait: float | None = template_routes.SETTLE) -> Call[Template]:
    """:raise Invalid: when nothing is to be changed, or a change is not understood."""
    if not changes:
        raise Invalid("there is nothing to change", hint="say what: warm=4")
    labels = dict(changes["labels"]) if "labels" in changes else msgspec.UNSET
    body = _encode(ResourcePatch(spec=spec(changes) or msgspec.UNSET, labels=labels))
    return Call(routes.patch(project, "template", name, body, wait=wait), answer(Template))


def rebuild(project: str, name: str) -> Call[Template]:
    return Call(template_routes.rebuild(project, name), answer(Template))


def shell(command: Sequence[str] | str) -> list[str]:
    """The words of *command*; one text is for a shell."""
    if isinstance(command, str):
        return ["/bin/sh", "-c", command] if command else []
    return list(command)


def spec(wishes: Wishes | Changes) -> dict[str, Any]:
    """The fields of a template's spec that *wishes* say. :raise Invalid: when one is no quantity."""
    given: dict[str, Any] = {**wishes}
    made = {name: given[name] for name in ("image", "isolation", "pids", "network", "warm", "by_rate") if name in given}
    if "cpu" in given:
        made["cpu"] = cores(given["cpu"])
    for name in ("memory", "disk"):
        if name in given:
            made[name] = size(given[name], field=name)
    if "environment" in given:
        made["environment"] = dict(given["environment"])
    if "warmup" in given:
        made["warmup"] = shell(given["warmup"])
    if "idle" in given:
        made["idle"] = None if given["idle"] is None else seconds(given["idle"], field="idle")
    return made
