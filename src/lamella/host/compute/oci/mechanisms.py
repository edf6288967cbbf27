"""What isolates and limits a running container, read from the kernel: each line with the file it was read from."""

import os
import time
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.oci.profile import CAPABILITIES
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.mounts import MountEntry
from lamella.model.contract import LIMIT, Mechanism
from lamella.model.quantity import format_cpu, format_size

NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
SETTLING = 2.0
SECCOMP_MODES = {"0": "off", "1": "strict", "2": "filter"}

# Bits of capabilities(7), linux/capability.h, in order.
CAPABILITY_NAMES = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
]


def capability_names(mask: int) -> list[str]:
    """The names of the bits in *mask*; an unknown bit is named by its number."""
    known = len(CAPABILITY_NAMES)
    bits = [bit for bit in range(64) if mask >> bit & 1]
    return [CAPABILITY_NAMES[bit] if bit < known else str(bit) for bit in bits]


def read(pid: int, group: Cgroup, proc: Path = Path("/proc")) -> list[Mechanism]:
    """Everything that is in force around *pid*; empty when it is gone. Blocks while the container is on its way into the command.

    The runtime puts the filter on as its last act before the command: what is read earlier would be of the runtime.
    """
    deadline = time.monotonic() + SETTLING
    while not _filtered(pid, proc) and time.monotonic() < deadline:
        time.sleep(0.002)
    try:
        status = _status((proc / str(pid) / "status").read_text())
    except OSError:
        return []
    base = f"/proc/{pid}"
    found = [_identity(pid, proc), *_namespaces(pid, proc), *_process(status, base)]
    found += _mounts(mounts.table(pid), f"{base}/mountinfo")
    found += _limits(group)
    return found


def _filtered(pid: int, proc: Path) -> bool:
    """Whether a seccomp filter is in force, or the process is gone: there is nothing to wait for then."""
    try:
        return _status((proc / str(pid) / "status").read_text()).get("Seccomp") == "2"
    except OSError:
        return True


def _status(text: str) -> dict[str, str]:
    rows = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in rows}


def _identity(pid: int, proc: Path) -> Mechanism:
    evidence = f"/proc/{pid}/uid_map"
    text = ""
    with suppress(OSError):
        text = " ".join((proc / str(pid) / "uid_map").read_text().split())
    fields = [int(field) for field in text.split()]
    mapped = len(fields) == 3 and fields[1] != 0
    value = (
        f"ids {fields[0]} to {fields[2] - 1} are {fields[1]} to {fields[1] + fields[2] - 1} outside"
        if mapped
        else "not mapped"
    )
    return Mechanism(name="id range", value=value, evidence=evidence, in_force=mapped)


def _namespaces(pid: int, proc: Path) -> list[Mechanism]:
    found: list[Mechanism] = []
    for name in NAMESPACES:
        link, own = "", ""
        with suppress(OSError):
            link = str((proc / str(pid) / "ns" / name).readlink())
            own = str((proc / "self" / "ns" / name).readlink())
        found.append(
            Mechanism(
                name=f"{name} namespace",
                value=link or "unknown",
                evidence=f"/proc/{pid}/ns/{name}",
                in_force=bool(link) and link != own,
            )
        )
    return found


def _process(status: dict[str, str], base: str) -> list[Mechanism]:
    evidence = f"{base}/status"
    allowed = {name.removeprefix("CAP_").lower() for name in CAPABILITIES}
    bounding = capability_names(int(status.get("CapBnd", "ffffffffffffffff"), 16))
    seccomp = SECCOMP_MODES.get(status.get("Seccomp", ""), "unknown")
    filters = status.get("Seccomp_filters", "")
    return [
        Mechanism(
            name="capabilities",
            value=", ".join(bounding) or "none",
            evidence=f"{evidence} CapBnd",
            in_force=set(bounding) <= allowed,
        ),
        Mechanism(
            name="no new privileges",
            value="yes" if status.get("NoNewPrivs") == "1" else "no",
            evidence=f"{evidence} NoNewPrivs",
            in_force=status.get("NoNewPrivs") == "1",
        ),
        Mechanism(
            name="seccomp",
            value=f"{seccomp}, {filters} filter" if filters else seccomp,
            evidence=f"{evidence} Seccomp",
            in_force=seccomp == "filter",
        ),
    ]


def _mounts(entries: list[MountEntry], evidence: str) -> list[Mechanism]:
    points = {entry.point: entry for entry in entries}
    root = points.get("/")
    # A masked path is covered by an empty read-only tmpfs or by /dev/null; a read-only one by itself.
    masked = [point for point, entry in points.items() if point.startswith(("/proc/", "/sys/")) and _covers(entry)]
    readonly = [
        point
        for point, entry in points.items()
        if point.startswith("/proc/") and entry.kind == "proc" and "ro" in entry.options
    ]
    sys = points.get("/sys")
    return [
        Mechanism(
            name="root filesystem",
            value=f"{root.kind} of its own" if root else "unknown",
            evidence=f"{evidence} /",
            in_force=root is not None and root.kind == "overlay",
        ),
        Mechanism(
            name="masked paths", value=", ".join(sorted(masked)) or "none", evidence=evidence, in_force=bool(masked)
        ),
        Mechanism(
            name="read-only paths",
            value=", ".join(sorted(readonly)) or "none",
            evidence=evidence,
            in_force=bool(readonly),
        ),
        Mechanism(
            name="read-only /sys",
            value="yes" if sys and "ro" in sys.options else "no",
            evidence=f"{evidence} /sys",
            in_force=sys is not None and "ro" in sys.options,
        ),
    ]


def _covers(entry: MountEntry) -> bool:
    if entry.point.startswith("/sys/fs/cgroup"):
        return False
    return entry.root == "/null" or (entry.kind in ("tmpfs", "devtmpfs") and "ro" in entry.options)


def _limits(group: Cgroup) -> list[Mechanism]:
    limits = group.read_limits()
    lines = (
        ("cpu", None if limits.cpu is None else f"{format_cpu(limits.cpu)} cores"),
        ("memory", None if limits.memory is None else f"{format_size(limits.memory)}, swap included"),
        ("pids", None if limits.pids is None else f"{limits.pids} processes"),
    )
    return [
        Mechanism(
            name=f"{LIMIT}{subject}",
            value=value or "none",
            evidence=os.fspath(group.path(subject)),
            in_force=value is not None,
        )
        for subject, value in lines
    ]
