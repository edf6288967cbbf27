"""The contract of one instance, from what was asked and what its host read from the running thing. Pure."""

from collections.abc import Sequence

from lamella.control.levels import EMULATED, LEVELS, NEVER_PROMISED
from lamella.control.network.rates import lines_of
from lamella.control.storage.promises import Promised, guarantees_of, limits_of
from lamella.model.contract import GUARANTEE, LIMIT, Contract, Line, Mechanism, Replica, judged
from lamella.model.instance import Instance, Phase
from lamella.model.judgement import Judgement
from lamella.model.quantity import format_cpu, format_size
from lamella.model.resource import now


def contract_of(
    instance: Instance,
    mechanisms: list[Mechanism],
    volumes: Sequence[Promised] = (),
    replicas: Sequence[Replica] = (),
    guards: Sequence[Line] = (),
    host: Sequence[Line] = (),
    judgements: Sequence[Judgement] = (),
) -> Contract:
    """Contract v1. *mechanisms* is empty when the instance does not run, and the contract says so. *volumes* are those attached to it,
    *replicas* what keeps them a second time, *guards* what is said of its firewalls, *host* what the host has promised in all,
    *judgements* its verdicts."""
    spec, status = instance.spec, instance.status
    running = status.phase in (Phase.RUNNING, Phase.PAUSED)
    read = {item.name: item for item in mechanisms}
    level = LEVELS[spec.isolation]
    not_promised = [*level.not_promised, *NEVER_PROMISED]
    if spec.isolation in EMULATED and status.accelerator == "tcg":
        not_promised.insert(
            0, f"Speed near the hardware's: the processor is emulated (TCG), because {status.accelerator_reason}."
        )
    return Contract(
        instance=instance.name,
        id=instance.id,
        read_at=now(),
        level=f"{spec.isolation}: {level.what}",
        driver=status.driver,
        observed=running and bool(mechanisms),
        isolation=[item for item in mechanisms if not item.name.startswith((LIMIT, GUARANTEE))],
        guarantees=[
            *judged(_shares(instance, read), list(judgements), guarantee=True),
            *_guarantees(instance),
            *host,
            *guards,
            *(line for item in volumes for line in guarantees_of(item)),
        ],
        limits=[
            *judged(
                [*_limits(instance, read), *lines_of(instance.spec, read)],
                list(judgements),
                guarantee=False,
            ),
            *(limits_of(item, running=running) for item in volumes),
        ],
        accelerator=status.accelerator or "none needed: instructions run on the host's processor",
        accelerator_reason=status.accelerator_reason,
        not_promised=not_promised,
        lacks=list(level.lacks),
        replicas=list(replicas),
    )


def _shares(instance: Instance, read: dict[str, Mechanism]) -> list[Line]:
    """What it gets of processors and memory whatever others do."""
    spec = instance.spec
    asked = {
        "cpu": f"{format_cpu(spec.cpu_guarantee)} cores" if spec.cpu_guarantee else "",
        "memory": format_size(spec.memory_guarantee) if spec.memory_guarantee else "",
    }
    lines: list[Line] = []
    for subject, wanted in asked.items():
        seen = read.get(f"{GUARANTEE}{subject}")
        if not wanted:
            continue
        if seen is not None and seen.in_force:
            lines.append(Line(subject=subject, value=seen.value, enforced_by=seen.evidence, asked=wanted))
        else:
            lines.append(Line(subject=subject, value=f"{wanted}, whatever others do", asked=wanted))
    return lines


def _guarantees(instance: Instance) -> list[Line]:
    spec, status = instance.spec, instance.status
    lines = [
        Line(
            subject="image", value=status.image_digest, enforced_by="content addressed by digest, layers never written"
        ),
        Line(
            subject="host ids",
            value=f"{status.id_base} to {status.id_base + 65535} belong to this instance alone on its host",
            enforced_by="a claim in the store",
        ),
    ]
    beginning = status.beginning
    if spec.template is not None and beginning is not None and status.epoch == beginning.epoch:
        lines.append(
            Line(
                subject="memory pages",
                value=f"those that it has not written are shared with other copies of template {spec.template},"
                f" all of them in project {instance.project}",
                enforced_by="copy on write of a sealed file; a template is its project's own",
            )
        )
    if status.address:
        lines.append(
            Line(
                subject="address",
                value=f"{status.address} ({status.mac})",
                enforced_by="a claim in the store; anti-spoofing sets",
            )
        )
    return lines


def _limits(instance: Instance, read: dict[str, Mechanism]) -> list[Line]:
    spec = instance.spec
    asked = {
        "cpu": f"{format_cpu(spec.cpu)} cores" if spec.cpu is not None else "",
        "memory": format_size(spec.memory) if spec.memory is not None else "",
        "pids": f"{spec.pids} processes",
        "disk": format_size(spec.disk) if spec.disk is not None else "",
    }
    lines: list[Line] = []
    # What nobody asked for, and the host gives all the same, is no line.
    asked |= {"cpuset": "cores of its own"} if spec.cpu_pin else {}
    for subject, wanted in asked.items():
        seen = read.get(f"{LIMIT}{subject}")
        if seen is not None and seen.in_force:
            lines.append(Line(subject=subject, value=seen.value, enforced_by=seen.evidence, asked=wanted))
        elif wanted:
            value = "not enforced here" if read else "not running: nothing to read"
            lines.append(Line(subject=subject, value=value, asked=wanted))
        else:
            lines.append(Line(subject=subject, value="the host's own size"))
    return lines
