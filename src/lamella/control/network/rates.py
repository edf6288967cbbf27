"""Ceilings of NICs: what may change of a NIC while its instance runs, and the rows that hosts hear of it by."""

from collections.abc import Iterable

import msgspec

from lamella.model import bit_rate
from lamella.model.contract import LIMIT, Line, Mechanism
from lamella.model.instance import Instance, InstanceSpec, Nic
from lamella.model.network import Port
from lamella.store.store import Transaction

# The directions as the spec, the rows and the contract call them.
SIDES = ("in", "out")


def without(nics: Iterable[Nic]) -> list[Nic]:
    """*nics* as they are but for their ceilings."""
    return [msgspec.structs.replace(nic, rate_in=None, rate_out=None) for nic in nics]


def change_rates(tx: Transaction, instance: Instance, wanted: InstanceSpec) -> None:
    """Write the ceilings of *wanted* to the ports that are there."""
    for number, nic in enumerate(wanted.nics):
        id = instance.status.port if number == 0 else instance.status.ports.get(nic.name or "")
        port: Port | None = tx.by_id(id) if id else None
        if port is not None and (port.spec.rate_in, port.spec.rate_out) != (nic.rate_in, nic.rate_out):
            port.spec.rate_in, port.spec.rate_out = nic.rate_in, nic.rate_out
            tx.update(port)


def rates_of(spec: InstanceSpec) -> dict[str, int]:
    """Every ceiling that *spec* asks for, by what a contract calls it: ``rate in``, ``rate out of nic1``."""
    found: dict[str, int] = {}
    for number, nic in enumerate(spec.nics):
        for side, rate in zip(SIDES, (nic.rate_in, nic.rate_out), strict=True):
            if rate is not None:
                found[f"rate {side}{f' of {nic.name}' if number else ''}"] = rate
    return found


def lines_of(spec: InstanceSpec, read: dict[str, Mechanism]) -> list[Line]:
    """The contract's lines for ceilings; *read* is what is in force, by name, and empty when the instance does not run."""
    lines: list[Line] = []
    for subject, rate in rates_of(spec).items():
        seen, asked = read.get(LIMIT + subject), bit_rate.format(rate)
        if seen is not None:
            lines.append(Line(subject=subject, value=seen.value, enforced_by=seen.evidence, asked=asked))
        else:
            value = "not enforced here" if read else "not running: nothing to read"
            lines.append(Line(subject=subject, value=value, asked=asked))
    return lines
