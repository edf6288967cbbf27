"""How the processors of a host are shared out among its instances: a pure function of what each was promised.

Guarantees become weights: under full contention everybody gets what his weight is of all weights, so an instance whose weight is its
guarantee, among weights that sum up to the host, gets it. Those without a guarantee, and the layer's own processes, have what is left
between them, by priority. Whoever has cores of its own has them alone: everybody else is kept to the others.
"""

from collections.abc import Collection, Sequence

import msgspec

from lamella.host.linux.cgroup_seat import CORE, Seat
from lamella.model.instance import Priority

# What is left is shared by these.
_FACTORS = {Priority.LOW: 1, Priority.NORMAL: 4, Priority.HIGH: 16}
# How much more the layer's instances weigh together than one process of the host's on each of its CPUs, once one has a guarantee.
_ALL = 10


class Promise(msgspec.Struct, kw_only=True, frozen=True):
    """What an instance was promised: milli-cores, and the CPUs that are its own with their nodes."""

    id: str
    guarantee: int = 0
    priority: Priority = Priority.NORMAL
    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()


class Shares(msgspec.Struct, kw_only=True, frozen=True):
    """The seat of each group by its name, and that of the layer's own group around all of them."""

    whole: Seat
    seats: dict[str, Seat]


def share_out(promises: Sequence[Promise], own: Collection[str], cpus: Sequence[int]) -> Shares:
    """*own* are names of groups of the layer's own processes, *cpus* those of the host.

    Without a guarantee nothing is weighed, without a pin nothing is bounded: everything is as the kernel has it.
    """
    pinned = {cpu for one in promises for cpu in one.cpus}
    shared = tuple(cpu for cpu in cpus if cpu not in pinned) or tuple(cpus)
    weighed = any(one.guarantee for one in promises)
    floating = [one for one in promises if not one.cpus]
    guaranteed = sum(one.guarantee for one in floating)
    rest = max(0, len(shared) * CORE - guaranteed)
    factors = {one.id: _FACTORS[one.priority] for one in floating if not one.guarantee}
    factors |= dict.fromkeys(own, _FACTORS[Priority.NORMAL])
    whole = sum(factors.values())
    seats: dict[str, Seat] = {}
    for one in promises:
        weight = len(one.cpus) * CORE if one.cpus else one.guarantee or rest * factors[one.id] // whole
        seats[one.id] = Seat(
            weight=weight if weighed else None,
            cpus=one.cpus or (shared if pinned else None),
            nodes=one.nodes or None,
        )
    for name in own:
        seats[name] = Seat(
            weight=rest * factors[name] // whole if weighed else None, cpus=shared if pinned else None, nodes=None
        )
    return Shares(whole=Seat(weight=_ALL * len(cpus) * CORE if weighed else None), seats=seats)
