"""What isolates a running module, read from its worker: /proc and the files of its control group. Never from intent."""

from lamella.host.compute.qemu import mechanisms as process
from lamella.host.compute.wasm.places import Record
from lamella.host.linux.cgroup import Cgroup
from lamella.model.contract import LIMIT, Mechanism
from lamella.model.quantity import format_size

_NEEDED = ("mnt", "net", "pid", "ipc", "uts")


def read(pid: int, group: Cgroup, record: Record, landlock: int) -> list[Mechanism]:
    """Look at *pid*.

    :raise OSError: when it is gone.
    """
    evidence = process.read(pid)
    found = [one for one in process.of_process(evidence) if one.name not in ("namespaces", "root")]
    own = [name for name in process.NAMESPACES if evidence.links[name] != evidence.ours[name]]
    shown = {point: options for point, options in evidence.mounts.items() if point != "/"}
    written = sorted(point for point, options in shown.items() if "ro" not in options.split(","))
    asked = {f"/d{number}" for number, one in enumerate(record.directories) if not one.read_only}
    found += [
        Mechanism(
            name="namespaces",
            value=", ".join(own) or "none",
            evidence=f"/proc/{pid}/ns/* are not those of the daemon",
            in_force=set(_NEEDED) <= set(own),
        ),
        Mechanism(
            name="root",
            value=f"a room that shows {', '.join(sorted(shown)) or 'nothing'}; "
            + (f"{', '.join(written)} may be written" if written else "nothing may be written"),
            evidence=f"/proc/{pid}/mountinfo",
            in_force=set(written) <= asked,
        ),
        Mechanism(
            name="landlock",
            value=f"ABI {landlock}: its module and directories, no other file, no port"
            if landlock
            else "not in this kernel",
            evidence="landlock_create_ruleset(2); a worker that could not restrict itself does not run",
            in_force=landlock > 0,
        ),
    ]
    found += _of_group(group, pid, record)
    return found


def _of_group(group: Cgroup, pid: int, record: Record) -> list[Mechanism]:
    found = process.of_group(group, pid)
    renamed = {"QEMU's memory limit": "worker's memory limit", "QEMU's threads limit": f"{LIMIT}pids"}
    for one in found:
        one.name = renamed.get(one.name, one.name)
        if one.name == "worker's memory limit" and one.in_force:
            one.value = one.value.replace("the guest's", "the module's")
        if one.name == f"{LIMIT}pids":
            one.value = f"one thread of the module's, {one.value} of the worker's"
    memory = record.limits.memory
    found.append(
        Mechanism(
            name=f"{LIMIT}memory",
            value=format_size(memory) if memory else "none",
            evidence="the store's limiter in the worker",
            in_force=memory is not None,
        )
    )
    if record.fuel is not None:
        found.append(
            Mechanism(name="fuel", value=f"{record.fuel} instructions in all", evidence="the store in the worker")
        )
    if record.deadline is not None:
        found.append(
            Mechanism(name="deadline", value=f"{record.deadline:g} s", evidence="the epoch of the worker's engine")
        )
    return found
