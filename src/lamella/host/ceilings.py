"""The ports of an instance: which is meant by a NIC's name, and what holds each back, as mechanisms of its contract."""

from lamella.host.network.driver import NetworkDriver
from lamella.model import bit_rate
from lamella.model.assignment import Assignment
from lamella.model.contract import LIMIT, Mechanism
from lamella.model.errors import NotFound
from lamella.model.network import Port


async def ceilings(network: NetworkDriver, asked: Assignment) -> list[Mechanism]:
    """Every ceiling in force, with what passes now; named by the contract's lines (``limit.rate in``, ``limit.rate out of nic1``)."""
    found: list[Mechanism] = []
    ports = [("", asked.port), *((f" of {name}", port) for name, port in asked.ports.items())]
    for which, port in ports:
        if port is None:
            continue
        rates = await network.rates(port.id)
        for side, rate in (("in", rates.into), ("out", rates.out_of)):
            if rate is not None:
                value = f"{bit_rate.format(rate.ceiling)}; {bit_rate.format(rate.measured)} pass now"
                found.append(Mechanism(name=f"{LIMIT}rate {side}{which}", value=value, evidence=rate.evidence))
    return found


def port_of(asked: Assignment, nic: str | None) -> Port:
    """The port of the NIC of that name; ``None`` is the first. :raise NotFound: when it has no such NIC."""
    name = asked.instance.name
    found = asked.port if nic is None else asked.ports.get(nic)
    if found is None:
        has = f"it has {', '.join(asked.ports)} beside the first" if asked.ports else ""
        raise NotFound(f"{name} has no NIC {nic!r}" if nic is not None else f"{name} has no network", hint=has)
    return found
