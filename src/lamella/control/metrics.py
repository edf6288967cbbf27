"""What instances use and whether their contracts are kept, as Prometheus reads it (text format 0.0.4). Pure.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for what only grows.
"""

from collections.abc import Callable, Iterable

import msgspec

from lamella.model.instance import Instance, Phase
from lamella.model.judgement import Judgement, Verdict
from lamella.model.usage import Usage


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, on the host of that name; ``usage`` is ``None`` when it does not run or its host does not answer."""

    instance: Instance
    host: str = ""
    usage: Usage | None = None
    judgements: list[Judgement] = []


_Read = Callable[[Usage], float | int | None]
# Name, type, what it says, where it is read.
USES: list[tuple[str, str, str, _Read]] = [
    ("cpu_seconds_total", "counter", "Processor time used.", lambda of: of.cpu_seconds),
    (
        "cpu_waiting_seconds_total",
        "counter",
        "Time in which something in it waited for a processor (PSI some).",
        lambda of: of.cpu_waited,
    ),
    (
        "cpu_throttled_seconds_total",
        "counter",
        "Processor time that its own ceiling took, summed over processors.",
        lambda of: of.throttled,
    ),
    ("memory_usage_bytes", "gauge", "Memory in use, without what could be given back first.", lambda of: of.memory),
    ("memory_limit_bytes", "gauge", "The ceiling of its memory.", lambda of: of.memory_limit),
    (
        "memory_waiting_seconds_total",
        "counter",
        "Time in which something in it waited for memory (PSI some).",
        lambda of: of.memory_waited,
    ),
    ("memory_oom_kills_total", "counter", "Processes killed for want of memory.", lambda of: of.oom_kills),
    (
        "io_waiting_seconds_total",
        "counter",
        "Time in which something in it waited for a device (PSI some).",
        lambda of: of.io_waited,
    ),
    ("filesystem_usage_bytes", "gauge", "Bytes in its writable layer.", lambda of: of.disk_used),
    ("processes", "gauge", "Processes in it.", lambda of: of.processes),
    ("network_receive_bytes_total", "counter", "Bytes that came in.", lambda of: of.received),
    ("network_transmit_bytes_total", "counter", "Bytes that it sent.", lambda of: of.sent),
]


def exposition(measured: Iterable[Measured]) -> str:
    """All of them, each metric's lines together. Of a verdict, one of the four series of a line is 1 and the others 0."""
    rows = sorted(measured, key=lambda row: (row.instance.project, row.instance.name))
    lines = ["# HELP lamella_instance_phase The phase that it is in.", "# TYPE lamella_instance_phase gauge"]
    lines += [
        f"lamella_instance_phase{_labels(row, phase=phase)} {int(row.instance.status.phase is phase)}"
        for row in rows
        for phase in Phase
    ]
    for name, kind, what, read in USES:
        lines += [f"# HELP lamella_instance_{name} {what}", f"# TYPE lamella_instance_{name} {kind}"]
        for row in rows:
            value = None if row.usage is None else read(row.usage)
            if value is not None:
                lines.append(f"lamella_instance_{name}{_labels(row)} {value!r}")
    lines += [
        "# HELP lamella_contract_verdict Whether a line of its contract is kept.",
        "# TYPE lamella_contract_verdict gauge",
    ]
    for row in rows:
        for item in row.judgements:
            line = {"subject": item.subject, "line": "guarantee" if item.guarantee else "limit"}
            found = {"now": item.verdict, **{each.window: each.verdict for each in item.windows}}
            for window, verdict in found.items():
                for one in Verdict:
                    labels = _labels(row, **line, window=window, verdict=one)
                    lines.append(f"lamella_contract_verdict{labels} {int(verdict is one)}")
    return "\n".join([*lines, ""])


def _labels(row: Measured, **more: str) -> str:
    spec = row.instance.spec
    known = {
        "project": row.instance.project,
        "instance": row.instance.name,
        "host": row.host,
        "isolation": spec.isolation,
    }
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in {**known, **more}.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
