"""What a contract says of an instance's firewalls: what may come in to it, and what may go out."""

from msgspec.structs import replace

from lamella.model.contract import Line
from lamella.model.firewall import FIREWALL, Firewall, Rule
from lamella.model.firewall_text import format
from lamella.model.instance import Instance
from lamella.model.network import Network, Port
from lamella.store.store import Transaction

ENFORCED_BY = "nftables and connection tracking in the layer's namespace, in force before its port is attached"
# More than these are told by their number: `lamella firewall show` has them all.
_TOLD = 8


def guarded(tx: Transaction, instance: Instance) -> list[Line]:
    """A line for each firewall of each of its ports, and for each port that has none."""
    status = instance.status
    lines: list[Line] = []
    for id in (status.port, *status.ports.values()):
        port: Port | None = tx.by_id(id) if id else None
        if port is not None:
            lines += _of_port(tx, port)
    return lines


def _of_port(tx: Transaction, port: Port) -> list[Line]:
    network: Network | None = tx.by_id(port.spec.network)
    place = port.spec.address.partition("/")[0]
    if not port.spec.firewalls:
        where = "its network" if network is None else f"network {network.name}"
        return [Line(subject=f"firewall of {place}", value=f"none: whatever is on {where} may come in")]
    found: list[Firewall] = [row for id in port.spec.firewalls if (row := tx.by_id(id)) is not None]
    lines = [
        Line(subject=f"firewall of {place}", value=f"{row.name}: {_may(tx, row.spec.inbound)} may come in", enforced_by=ENFORCED_BY)
        for row in found
    ]  # fmt: skip
    # One that lets everything out lets it out for all of them.
    if found and all(row.spec.outbound is not None for row in found):
        rules = [rule for row in found for rule in row.spec.outbound or ()]
        value = f"{_may(tx, rules, outward=True)} may go out"
        lines.append(Line(subject=f"firewall of {place}", value=value, enforced_by=ENFORCED_BY))
    return lines


def _may(tx: Transaction, rules: list[Rule], *, outward: bool = False) -> str:
    texts = list(dict.fromkeys(format(_named(tx, rule), outward=outward) for rule in rules))
    more = len(texts) - _TOLD
    return ", ".join(texts[:_TOLD]) + (f" and {more} more" if more > 0 else "") if texts else "nothing"


def _named(tx: Transaction, rule: Rule) -> Rule:
    """*rule* with its peer's name for its id."""
    if not rule.peer.startswith(FIREWALL):
        return rule
    other: Firewall | None = tx.by_id(rule.peer.removeprefix(FIREWALL))
    return rule if other is None else replace(rule, peer=FIREWALL + other.name)
