"""Cores of one's own: claimed in the store, so that no two instances ever have the same, and given back when nobody needs them.

They are an instance's from the moment that it is asked to run until it was asked to stop or to be suspended and is, or is removed, or
asks for other ones. One core of each host at least stays everybody's.
"""

from lamella.control import allocation
from lamella.control.allocation import Pinned
from lamella.model.cpulist import format_list
from lamella.model.errors import Unsupported
from lamella.model.host import Host
from lamella.model.instance import Decision, Instance, InstanceSpec, Phase, Power
from lamella.model.resource import now
from lamella.store.store import Transaction

# What was never told to have stopped may be about to begin on its host.
_AT_REST = (Phase.STOPPED, Phase.FAILED, Phase.SUSPENDED)
_RESTING = (Power.STOPPED, Power.SUSPENDED)


def find_cores(tx: Transaction, host: Host, spec: InstanceSpec, *, but: str = "") -> Pinned:
    """The cores of *host* that *spec* would get; those of the instance with the id *but* are free.

    :raise NoRoom: when there are not so many that nobody has. :raise Unsupported: when the host has not told what it has.
    """
    topology = host.status.topology
    if topology is None:
        raise Unsupported(
            f"host {host.name} has not told which cores it has",
            hint="it does when it starts anew",
            field="spec.cpu_pin",
        )
    taken: dict[str, list[int]] = {}
    for cpu, owner in tx.claims(_space(host)).items():
        if owner != but:
            taken.setdefault(owner, []).append(int(cpu))
    keep = allocation.reserved(allocation.cores_of(topology), max(1, -(-host.spec.reserve.cpu // 1000)))
    return allocation.pin(topology, taken, (spec.cpu or 0) // 1000, keep=keep)


def settle_pins(tx: Transaction, instance: Instance) -> None:
    """Have *instance*, which is written afterwards, own the cores that it needs now, and no others.

    :raise NoRoom: when there are not so many that nobody has.
    """
    spec, status = instance.spec, instance.status
    host: Host | None = tx.by_id(status.host or "")
    if host is None or not (spec.cpu_pin or status.cpus):
        return
    if instance.deleted_at is not None:
        return
    if spec.cpu_pin and spec.power not in _RESTING:
        if not allocation.suffices(host.status.topology, status.cpus, (spec.cpu or 0) // 1000):
            found = find_cores(tx, host, spec, but=instance.id)
            if found.cpus == tuple(status.cpus):
                return
            _give_back(tx, host, instance)
            for cpu in found.cpus:
                tx.claim(_space(host), str(cpu), instance.id)
            status.cpus, status.nodes = list(found.cpus), list(found.nodes)
            status.decisions.append(
                Decision(
                    at=now(),
                    what="cores of its own",
                    chosen=f"CPUs {format_list(found.cpus)}, near nodes {format_list(found.nodes)}",
                    because="whole cores that nobody has: near each other, near their memory, the fastest first",
                )
            )
    elif not spec.cpu_pin:
        _give_back(tx, host, instance)
    else:
        release_pins(tx, instance)


def release_pins(tx: Transaction, instance: Instance) -> None:
    """Give back the cores of *instance* when it was asked to stop or to be suspended, and is: until then it may still run there."""
    spec, status = instance.spec, instance.status
    host: Host | None = tx.by_id(status.host or "") if status.cpus else None
    if host is not None and spec.power in _RESTING and status.phase in _AT_REST:
        _give_back(tx, host, instance)


def _give_back(tx: Transaction, host: Host, instance: Instance) -> None:
    for cpu in instance.status.cpus:
        tx.release(_space(host), str(cpu), instance.id)
    instance.status.cpus, instance.status.nodes = [], []


def _space(host: Host) -> str:
    return f"cpus:{host.id}"
