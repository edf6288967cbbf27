"""What an instance asks of its host's processors and memory: that it makes sense, and how much it is. Pure."""

import msgspec

from lamella.model.errors import Invalid
from lamella.model.instance import Instance, InstanceSpec, Phase, Power, RestartMode
from lamella.model.quantity import format_cpu, format_size
from lamella.model.sizes import DEFAULT_CPU, DEFAULT_MEMORY


class Share(msgspec.Struct, kw_only=True, frozen=True):
    """Milli-cores and bytes: what is guaranteed, and the ceilings that a host has to count."""

    cpu_guarantee: int = 0
    memory_guarantee: int = 0
    cpu: int = 0
    memory: int = 0

    def __add__(self, other: "Share") -> "Share":
        return Share(
            cpu_guarantee=self.cpu_guarantee + other.cpu_guarantee,
            memory_guarantee=self.memory_guarantee + other.memory_guarantee,
            cpu=self.cpu + other.cpu,
            memory=self.memory + other.memory,
        )


NOTHING = Share()


def check_shares(spec: InstanceSpec) -> None:
    """:raise Invalid: when a guarantee is above its ceiling, or the cores of one's own are not whole ones."""
    cpu = spec.cpu or (DEFAULT_CPU if spec.isolation in DEFAULT_MEMORY else None)
    if spec.cpu_guarantee and cpu is not None and spec.cpu_guarantee > cpu:
        raise Invalid(
            f"{format_cpu(spec.cpu_guarantee)} cores cannot be guaranteed to what has {format_cpu(cpu)} at most",
            hint=f"ask for --cpu {format_cpu(spec.cpu_guarantee)} or more, or for a smaller --cpu-guarantee",
            field="spec.cpu_guarantee",
        )
    memory = spec.memory or DEFAULT_MEMORY.get(spec.isolation)
    if spec.memory_guarantee and memory is not None and spec.memory_guarantee > memory:
        raise Invalid(
            f"{format_size(spec.memory_guarantee)} of memory cannot be guaranteed to what has"
            f" {format_size(memory)} at most",
            hint="write the floor first: --memory 1GiB..4GiB",
            field="spec.memory_guarantee",
        )
    if spec.cpu_pin and spec.cpu is None:
        raise Invalid(
            "cores of its own are asked for, and not how many", hint="--cpu says how many: --cpu 2", field="spec.cpu"
        )
    if spec.cpu_pin and spec.cpu is not None and spec.cpu % 1000:
        raise Invalid(
            f"{format_cpu(spec.cpu)} cores cannot be its own: only whole ones can",
            hint=f"ask for --cpu {-(-spec.cpu // 1000)}, or leave --cpu-pin out",
            field="spec.cpu",
        )


def share_of(spec: InstanceSpec, own: int = 0) -> Share:
    """What *spec* takes of a host while it runs, with *own* CPUs that nobody else has. A ceiling of processors counts when it was asked
    for; the memory of a machine always counts, but for huge pages, which are counted as such. Cores of one's own are guaranteed."""
    guarantee = spec.cpu_guarantee or 0
    plain = not spec.huge_pages
    return Share(
        cpu_guarantee=max(guarantee, spec.cpu or 0, own * 1000) if spec.cpu_pin else guarantee,
        memory_guarantee=(spec.memory_guarantee or 0) if plain else 0,
        cpu=spec.cpu or 0,
        memory=(spec.memory or DEFAULT_MEMORY.get(spec.isolation, 0)) if plain else 0,
    )


def counts(instance: Instance) -> bool:
    """Whether the instance runs, or may begin to without being asked for anew. Who has cores of its own counts until it gives them back;
    what is suspended holds nothing, and is asked for anew when it is resumed."""
    spec, status = instance.spec, instance.status
    if status.cpus:
        return True
    if spec.power is Power.STOPPED or instance.deleted_at is not None:
        return False
    if spec.power is Power.SUSPENDED and status.phase in (Phase.SUSPENDED, Phase.STOPPED, Phase.FAILED):
        return False
    over = status.phase is Phase.STOPPED and status.epoch >= spec.epoch
    rests = spec.restart.mode is RestartMode.NO
    rests = rests or (spec.restart.mode is RestartMode.ON_FAILURE and status.exit_code == 0)
    return not (over and rests)
