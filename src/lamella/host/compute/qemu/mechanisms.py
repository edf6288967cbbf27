"""What isolates a running microVM, read from it: /proc, the files of its group, and what QEMU says. Never from intent."""

from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux.cgroup import Cgroup
from lamella.model.contract import LIMIT, Mechanism
from lamella.model.errors import LamellaError
from lamella.model.quantity import format_cpu, format_size

NAMESPACES = ("mnt", "net", "pid", "ipc", "uts", "cgroup")
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_SECCOMP = {"0": "none", "1": "strict", "2": "filter"}


class Evidence(msgspec.Struct, kw_only=True, frozen=True):
    """What was read of one QEMU. ``links`` are its namespaces, ``ours`` the daemon's; ``root`` is what its root directory holds."""

    pid: int
    status: dict[str, str]
    links: dict[str, str]
    ours: dict[str, str]
    root: list[str]
    mounts: dict[str, str]


def read(pid: int) -> Evidence:
    """Look at *pid*.

    :raise OSError: when it is gone.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    mounts = {line.split()[4]: line.split()[5] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    return Evidence(
        pid=pid,
        status=status,
        links={name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES},
        ours={name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in NAMESPACES},
        root=sorted(path.name for path in Path(f"/proc/{pid}/root").iterdir()),
        mounts=mounts,
    )


def of_process(evidence: Evidence) -> list[Mechanism]:
    """What the process is confined by. Pure."""
    at = f"/proc/{evidence.pid}"
    uid = evidence.status["Uid"].split()
    none = all(int(evidence.status[name], 16) == 0 for name in _CAPABILITIES)
    own = [name for name in NAMESPACES if evidence.links[name] != evidence.ours[name]]
    written = [
        point
        for point, options in evidence.mounts.items()
        if not options.startswith("ro") and point not in ("/dev/kvm", "/dev/null")
    ]
    return [
        Mechanism(
            name="user",
            value=f"uid {uid[1]}, its own",
            evidence=f"{at}/status Uid",
            in_force="0" not in uid,
        ),
        Mechanism(
            name="capabilities",
            value="none, and none to be had" if none else f"effective {evidence.status['CapEff']}",
            evidence=f"{at}/status {' '.join(_CAPABILITIES)}",
            in_force=none,
        ),
        Mechanism(
            name="no-new-privileges",
            value="on" if evidence.status["NoNewPrivs"] == "1" else "off",
            evidence=f"{at}/status NoNewPrivs",
            in_force=evidence.status["NoNewPrivs"] == "1",
        ),
        Mechanism(
            name="seccomp",
            value=_SECCOMP.get(evidence.status["Seccomp"], evidence.status["Seccomp"]),
            evidence=f"{at}/status Seccomp",
            in_force=evidence.status["Seccomp"] == "2",
        ),
        Mechanism(
            name="namespaces",
            value=", ".join(own) or "none",
            evidence=f"{at}/ns/* are not {'those of the daemon' if own else 'different'}",
            in_force=len(own) == len(NAMESPACES),
        ),
        Mechanism(
            name="root",
            value=f"a room that holds {', '.join(f'/{name}' for name in evidence.root)}; "
            + (f"{', '.join(written)} may be written" if written else "nothing may be written"),
            evidence=f"{at}/mountinfo, {at}/root",
            in_force=not written,
        ),
    ]


def of_group(group: Cgroup, pid: int) -> list[Mechanism]:
    """What the control group holds the process to, as the kernel says."""
    limits = group.read_limits()
    files = group.procs_files()
    inside = all(str(pid) in file.read_text().split() for file in files)
    place = f"{files[0].parent}" if files else ""
    among = f" and {len(files) - 1} more hierarchies" if len(files) > 1 else ""
    found = [
        Mechanism(
            name="control group", value=group.name, evidence=f"{files[0] if files else '-'}{among}", in_force=inside
        )
    ]
    words = [
        (f"{LIMIT}cpu", "cpu", None if limits.cpu is None else f"{format_cpu(limits.cpu)} cores"),
        (
            "QEMU's memory limit",
            "memory",
            None if limits.memory is None else f"{format_size(limits.memory)}, the guest's included",
        ),
        ("QEMU's threads limit", "pids", None if limits.pids is None else str(limits.pids)),
    ]
    for name, controller, value in words:
        with suppress(LamellaError):
            place = str(group.path(controller))
        found.append(Mechanism(name=name, value=value or "none", evidence=place, in_force=inside and value is not None))
    return found


def of_machine(*, kvm: bool, memory: int, vcpus: int, kernel: str) -> list[Mechanism]:
    """What QEMU says of the machine."""
    return [
        Mechanism(
            name="kernel",
            value=f"its own, {kernel}" if kernel else "its own",
            evidence="the guest's agent",
            in_force=True,
        ),
        Mechanism(
            name="processor",
            value=f"{vcpus} virtual, {'by hardware virtualization' if kvm else 'emulated by QEMU (TCG)'}",
            evidence="QMP query-kvm",
        ),
        Mechanism(name=f"{LIMIT}memory", value=format_size(memory), evidence="QMP query-balloon"),
    ]


def of_beginning(began: str, owner: str | None, pid: int) -> list[Mechanism]:
    """Whose pages it shares. *began* is the memory that it began with (empty: it booted), *owner* the project whose copies share it; empty
    is all of the host's, ``None`` not known any more. Blocks for a moment."""
    maps = f"/proc/{pid}/maps"
    try:
        lines = Path(maps).read_text().splitlines()
    except OSError:
        return []
    # "/memfd:memory (deleted)", private and copied when written.
    private = any("/memfd:memory" in line and line.split()[1].startswith("rw-p") for line in lines)
    shared = any("/memfd:memory" in line and line.split()[1].endswith("s") for line in lines)
    if not began:
        return [
            Mechanism(
                name="memory beginning", value="its own: it booted", evidence=maps, in_force=not private and not shared
            )
        ]
    among = {None: "", "": ", with copies of every project"}.get(owner, f", with copies in project {owner} alone")
    value = f"shared copy-on-write with {began}{among}"
    return [Mechanism(name="memory beginning", value=value, evidence=maps, in_force=private and not shared)]


# Where the guest's agent bounds the processes of the instance (cgroup-v2, pids controller), as the guest sees it.
PIDS_MAX = "/sys/fs/cgroup/instance/pids.max"


def of_guest(pids_max: str, disk: int) -> list[Mechanism]:
    """What bounds the instance inside: its processes, by the guest's own kernel; *disk* is the bytes of its writable disk."""
    bounded = pids_max.isdecimal()
    value = f"{pids_max} processes, by the guest's own kernel" if bounded else "none"
    return [
        Mechanism(name=f"{LIMIT}pids", value=value, evidence=f"{PIDS_MAX} in the guest", in_force=bounded),
        Mechanism(
            name=f"{LIMIT}disk", value=format_size(disk), evidence="the size of its writable disk", in_force=disk > 0
        ),
    ]
