"""What a contract says of an instance's memory: what it has now, by what it is taken, and whether it follows. Pure."""

import msgspec

from lamella.host.memory.driver import Held
from lamella.model.contract import GUARANTEE, LIMIT, Mechanism
from lamella.model.quantity import format_size


def with_memory(found: list[Mechanism], held: Held, target: int, *, floor: int = 0, follows: bool) -> list[Mechanism]:
    """*found* with two lines more, three where a *floor* was promised. A machine's ceiling is not what its balloon leaves it now, and
    reads so."""
    ceiling = f"{format_size(held.ceiling)}, of which it has {format_size(held.held)} now"
    lines = [
        msgspec.structs.replace(item, value=ceiling) if held.balloon and item.name == f"{LIMIT}memory" else item
        for item in found
    ]
    says = held.silent or f"{'it says that it uses' if held.balloon else 'in use'} {format_size(held.used or 0)}"
    now = f"{format_size(held.held)} of {format_size(held.ceiling)}; {says}"
    how = f"down to {format_size(target)}, by {held.means}"
    if floor:
        # A balloon leaves the guest what it has; a group has as much as it uses, and may use its ceiling at once.
        given = f", and {format_size(held.held)} now" if held.balloon else ""
        value = f"{format_size(floor)} at least{given}: nothing is taken below"
        in_force = not held.balloon or held.held >= min(floor, held.ceiling)
        lines.append(Mechanism(name=f"{GUARANTEE}memory", value=value, evidence=held.evidence, in_force=in_force))
    return [
        *lines,
        Mechanism(name="memory now", value=now, evidence=held.evidence),
        Mechanism(
            name="memory taken back",
            value=how if follows else f"{how}; not followed: {held.silent or 'it keeps more'}",
            evidence=held.evidence,
            in_force=follows and not held.silent,
        ),
    ]
