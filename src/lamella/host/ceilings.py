"""What holds back the ports of an instance, as mechanisms of its contract."""

from lamella.host.network.driver import NetworkDriver
from lamella.model import bit_rate
from lamella.model.assignment import Assignment
from lamella.model.contract import LIMIT, Mechanism


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
