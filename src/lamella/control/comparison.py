"""All levels side by side, and why one cannot be had: from what hosts say of themselves. Pure."""

from collections.abc import Callable, Sequence

from lamella.control.levels import EMULATED, LEVELS, NEVER_PROMISED, Level
from lamella.model.contract import Comparison, ComparisonRow, LevelSummary, Reason, WhyNot
from lamella.model.host import Capability, Host
from lamella.model.instance import Isolation

NATIVE = "the host's processor runs it directly"
COMPILED = "compiled to the host's instructions once, then run directly"
EMULATION = (
    "emulated (TCG): every instruction is translated by QEMU, many times slower than the processor itself; "
    "see docs/isolation.md for what was measured"
)


def compare(hosts: Sequence[Host]) -> Comparison:
    """The contracts of all levels as these hosts keep them. Hosts that are not ready count as unable, and are named."""
    return Comparison(
        levels=[_summary(level, hosts) for level in LEVELS],
        rows=[
            _row("isolated by", lambda of: of.isolated_by),
            _row("shared with the host", lambda of: of.shared),
            _row("runs", lambda of: of.runs),
            _row("kernel", lambda of: of.kernel),
            ComparisonRow(subject="speed", values={level.value: _speed(level, hosts) for level in LEVELS}),
            _row("cpu limit", lambda of: of.cpu),
            _row("memory limit", lambda of: of.memory),
            _row("process limit", lambda of: of.processes),
            _row("disk limit", lambda of: of.disk),
            _row("network", lambda of: of.network),
            _row("stop", lambda of: of.stop),
            _row("verbs it lacks", lambda of: "\n".join(of.lacks) or "none"),
            _row("not promised", lambda of: "\n".join(of.not_promised)),
        ],
        not_promised=list(NEVER_PROMISED),
    )


def why_not(level: Isolation, hosts: Sequence[Host]) -> WhyNot:
    """Everything that *level* needs, host by host, missing things first. A host that is not ready is one missing thing."""
    reasons: list[Reason] = []
    for host in hosts:
        reasons += _reasons(level, host)
    if not hosts:
        reasons.append(
            Reason(host="", need="host", available=False, reason="no host has registered; start lamellad --role host")
        )
    available = any(_able(level, host) for host in hosts)
    return WhyNot(level=level.value, available=available, reasons=sorted(reasons, key=lambda item: item.available))


def _reasons(level: Isolation, host: Host) -> list[Reason]:
    if host.status.phase != "ready":
        told = next((condition.message for condition in host.status.conditions if not condition.status), "")
        sentence = f"the host is {host.status.phase}{f': {told}' if told else ''}"
        return [Reason(host=host.name, need="host", available=False, reason=sentence)]
    wanted = f"compute.{level}"
    found = [item for item in host.status.capabilities if item.name == wanted or item.name.startswith(f"{wanted}.")]
    if not any(item.name == wanted for item in found):
        found.insert(0, Capability(name=wanted, available=False, reason="this host has no driver for it"))
    # What only sums up what follows it says nothing new.
    names = [item.name for item in found]
    found = [
        item for item in found if item.name == wanted or not any(name.startswith(f"{item.name}.") for name in names)
    ]
    if level in EMULATED:
        # Every driver that uses QEMU tells of it, and all tell the same.
        found += [item for item in host.status.capabilities if item.name == "accelerator"][:1]
    return [Reason(host=host.name, need=item.name, available=item.available, reason=_sentence(item)) for item in found]


def _sentence(item: Capability) -> str:
    return ": ".join(part for part in (item.value, item.reason) if part)


def _able(level: Isolation, host: Host) -> bool:
    wanted = f"compute.{level}"
    return (
        host.status.phase == "ready"
        and host.deleted_at is None
        and any(item.name == wanted and item.available for item in host.status.capabilities)
    )


def _summary(level: Isolation, hosts: Sequence[Host]) -> LevelSummary:
    able = [host for host in hosts if _able(level, host)]
    wanted = f"compute.{level}"
    told = [
        f"{item.host}: {item.reason}"
        for host in able or hosts
        for item in _reasons(level, host)
        if item.need in (wanted, "host")
    ]
    return LevelSummary(
        level=level.value,
        what=LEVELS[level].what,
        available=bool(able),
        reason="; ".join(told) or "no host has registered",
    )


def _speed(level: Isolation, hosts: Sequence[Host]) -> str:
    """How its instructions run, host by host where hosts differ."""
    match level:
        case Isolation.CONTAINER:
            return NATIVE
        case Isolation.WASM:
            return COMPILED
        case Isolation.CONFIDENTIAL:
            return "hardware virtualization; encryption of memory costs a little of it. Never emulated"
        case _:
            pass
    said: dict[str, list[str]] = {}
    for host in hosts:
        accelerator = next((item for item in host.status.capabilities if item.name == "accelerator"), None)
        if host.status.phase == "ready" and accelerator is not None:
            words = (
                "hardware virtualization (KVM)" if accelerator.value == "kvm" else f"{EMULATION}; {accelerator.reason}"
            )
            said.setdefault(words, []).append(host.name)
    if not said:
        return "not known: no ready host has told of its accelerator"
    if len(said) == 1:
        return next(iter(said))
    return "\n".join(f"{', '.join(names)}: {words}" for words, names in said.items())


def _row(subject: str, of: Callable[[Level], str]) -> ComparisonRow:
    return ComparisonRow(subject=subject, values={level.value: of(facts) for level, facts in LEVELS.items()})
