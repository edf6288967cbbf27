"""What a template is made of, and what a copy of it is: pure.

The key says what is frozen in its memory. Whatever changes the key makes the memory that of another machine.
"""

import hashlib
from collections.abc import Iterable

import msgspec

from lamella.control.fitting import KEEPS_MEMORY
from lamella.model.errors import Invalid, Unsupported
from lamella.model.host import Capability, Host
from lamella.model.instance import InstanceSpec, Isolation, Nic, Power
from lamella.model.quantity import format_cpu, format_size
from lamella.model.template import TemplateSpec

NO_NETWORK = "none"
# What waits for a command has one that is never run: an image may name none.
WAITS = ["true"]
# What a copy has as its template has it, and what its option is called.
_SHAPE = (("cpu", "--cpu"), ("memory", "--memory"), ("disk", "--disk"), ("pids", "--pids"))
# What was not there when the memory was frozen cannot come with it.
_NOTHING = (
    ("volumes", "--volume"),
    ("disks", "more than one --disk"),
    ("cdroms", "--iso"),
    ("usb", "--usb"),
    ("huge_pages", "--huge-pages"),
    ("directories", "--dir"),
)
# What somebody who takes a copy that waits may choose.
CHOSEN = (
    *("command", "entrypoint", "environment", "working_directory", "user", "hostname", "terminal", "stdin"),
    *("restart", "stop_signal", "stop_timeout", "remove_on_exit"),
)
_UNSAID = InstanceSpec()
_KEPT_BY_LAYER = ("power", "epoch", "attach_epoch", "grace")


def check_recipe(spec: TemplateSpec) -> None:
    """:raise Unsupported: when the level has no memory that can be kept. :raise Invalid: when the warm-up is no command."""
    if spec.isolation not in KEEPS_MEMORY:
        raise Unsupported(
            f"a {spec.isolation} has no memory that could be kept: it begins at once as it is",
            hint=f"templates are of isolation {' or '.join(sorted(KEEPS_MEMORY))}",
            field="spec.isolation",
        )
    if spec.warmup and not spec.warmup[0]:
        raise Invalid(
            "the first word of the warm-up is empty", hint="name a program, or leave it out", field="spec.warmup"
        )
    if spec.by_rate and not spec.warm:
        raise Invalid(
            "copies are to wait by the rate at which they are asked for, and none at most",
            hint="say how many at most: --warm 8",
            field="spec.warm",
        )


def key_of(spec: TemplateSpec, digest: str, host: Host) -> str:
    """What a memory is of: the image with this *digest*, the recipe, and the kernel, QEMU and processor that *host* has."""
    made_of = {
        name: getattr(spec, name)
        for name in ("isolation", "cpu", "memory", "pids", "disk", "network", "environment", "warmup", "epoch")
    }
    text = msgspec.json.encode({**made_of, "image": digest, "host": _platform(host, spec.isolation)}, order="sorted")
    return "sha256:" + hashlib.sha256(text).hexdigest()


def _platform(host: Host, isolation: Isolation) -> dict[str, str]:
    said: Iterable[Capability] = host.status.capabilities
    named = (f"compute.{isolation}", "accelerator")
    return {"host": host.id} | {item.name: item.value for item in said if item.name in named}


def waiting_spec(name: str, spec: TemplateSpec) -> InstanceSpec:
    """A machine that is made up to the moment before its command: the builder (with *name* empty), or a copy of the template *name*."""
    return InstanceSpec(
        image=spec.image,
        isolation=spec.isolation,
        command=list(WAITS),
        environment=dict(spec.environment),
        cpu=spec.cpu,
        memory=spec.memory,
        pids=spec.pids,
        disk=spec.disk,
        nics=[] if spec.network == NO_NETWORK else [Nic(network=spec.network)],
        template=name or None,
        cold=not name,
        power=Power.READY,
    )


def shape(spec: InstanceSpec, name: str, of: TemplateSpec) -> None:
    """Fill in what a copy of template *name* has as its memory, made by *of*, has it, in place.

    :raise Unsupported: when *spec* asks for a machine of another shape; the sentence says what the template has.
    :raise Invalid: when it is to boot, too.
    """
    if spec.cold:
        raise Invalid(
            f"it is to begin as a copy of template {name}, and to boot",
            hint="leave one of --template and --no-template out",
            field="spec.cold",
        )
    if spec.image and spec.image != of.image:
        raise _other(f"image {spec.image}", name, f"is of {of.image}", "image")
    # Who says nothing of the level asks for the least.
    if spec.isolation not in (of.isolation, Isolation.CONTAINER):
        raise _other(f"isolation {spec.isolation}", name, f"is a {of.isolation}", "isolation")
    spec.image, spec.isolation = of.image, of.isolation
    for field, option in _SHAPE:
        asked, has = getattr(spec, field), getattr(of, field)
        if asked not in (has, getattr(_UNSAID, field)):
            raise _other(f"{option} {_said(field, asked)}", name, f"has {_said(field, has)}", field)
        setattr(spec, field, has)
    for field, option in _NOTHING:
        if getattr(spec, field):
            raise Unsupported(
                f"a copy of template {name} has no {field.replace('_', ' ')}: {option} asks for what was not there when it was frozen",
                hint="leave it out, or run it without --template",
                field=f"spec.{field}",
            )
    nics = 0 if of.network == NO_NETWORK else 1
    if len(spec.nics) != nics:
        raise _other(f"{len(spec.nics) or 'no'} NICs", name, f"has {nics or 'none'}", "nics")
    spec.environment = {**of.environment, **spec.environment}


def agrees(member: InstanceSpec, wanted: InstanceSpec) -> bool:
    """Whether a copy that waits as *member* can become *wanted*: they differ in nothing but what can be chosen when it is taken."""
    return _fixed(member) == _fixed(wanted)


def _fixed(spec: InstanceSpec) -> InstanceSpec:
    free = InstanceSpec(image=spec.image)
    return msgspec.structs.replace(spec, **{name: getattr(free, name) for name in (*CHOSEN, *_KEPT_BY_LAYER)})


def _said(field: str, value: int | None) -> str:
    if value is None:
        return f"the default {field}"
    return {"memory": format_size, "disk": format_size, "cpu": format_cpu}.get(field, str)(value)


def _other(asked: str, name: str, has: str, field: str) -> Unsupported:
    return Unsupported(
        f"a copy is what its template is: {asked} was asked for, and template {name} {has}",
        hint="leave it out, or make a template of that shape",
        field=f"spec.{field}",
    )
