"""What each isolation level is, in words: data, for contracts and for their comparison.

Everything here is true of every instance of a level, whoever reads it. What depends on a host is added in ``comparison.py``,
what depends on an instance in ``contract.py``.
"""

import msgspec

from lamella.model.instance import Isolation

EMULATED = (Isolation.MICROVM, Isolation.UNIKERNEL, Isolation.VM)
"""Levels whose processor QEMU emulates where KVM does not work."""

OWN_KERNEL = "a kernel of its own on virtual hardware"
_ROOM = (
    "QEMU, the only process that it can reach: uid of its own, no capabilities, seccomp, own namespaces, an empty "
    "read-only root"
)
_GROUP = "control group of its QEMU"
_SIDE_CHANNELS = "Protection from side channels between guests on one processor."
_READABLE = "Confidentiality from the host: its administrator can read the guest's memory."


class Level(msgspec.Struct, kw_only=True, frozen=True):
    """One level. ``lacks`` are verbs that it does not have, each with the reason; ``not_promised`` is its own part of that list."""

    what: str
    isolated_by: str
    shared: str
    runs: str
    kernel: str
    cpu: str
    memory: str
    processes: str
    disk: str
    network: str
    stop: str
    lacks: list[str] = []
    not_promised: list[str] = []


LEVELS: dict[Isolation, Level] = {
    Isolation.CONTAINER: Level(
        what="namespaces, seccomp and capabilities of the host's own kernel",
        isolated_by="user, mount, pid, network, IPC, UTS and cgroup namespaces; ids of its own; seccomp; few capabilities",
        shared="the host's kernel, all of it that seccomp lets through; processor; memory",
        runs="an image's files, as processes of the host",
        kernel="the host's",
        cpu="control group: a ceiling, changed while it runs",
        memory="control group: a ceiling, changed while it runs",
        processes="control group",
        disk="no bound of its own: the pool's room",
        network="a veth pair into its own network namespace",
        stop="a signal, then SIGKILL",
        lacks=[
            "devices, reset, dump, screenshot, type and desktop: it is processes, not a machine",
        ],
        not_promised=[
            "Isolation from a flaw in the host's kernel: a container shares that kernel with everything else.",
            "Protection from side channels between processes on one processor.",
        ],
    ),
    Isolation.WASM: Level(
        what="a WebAssembly module in a confined worker process, without system calls of its own",
        isolated_by="the runtime's sandbox of memory and typed calls; around it a process of its own uid, no capabilities, seccomp, "
        "own namespaces, Landlock where the kernel has it",
        shared="the host's kernel, by the few calls that the worker may make; the processor; directories that it is given",
        runs="one WASI module or component",
        kernel="none: WASI calls are answered by the worker",
        cpu="control group; a deadline in seconds and a number of instructions (fuel) if asked for",
        memory="the runtime's bound on linear memory; control group around the worker",
        processes="one: a module cannot make another",
        disk="no disk of its own; what it writes to the directories that it is given is not bounded",
        network="none",
        stop="the module is interrupted by the runtime, then its worker is killed",
        lacks=[
            "exec: an instance is one module and has no place for a second program",
            "files (cp, ls): it sees only the directories that it is given, which the host has",
            "a terminal and a network",
            "more memory while it runs: it is bounded when the module starts",
            "devices, reset, dump, screenshot, type and desktop: it is a program, not a machine",
        ],
        not_promised=[
            "Isolation from a flaw in the runtime's compiler beyond what confines the worker process.",
            "Protection from side channels between processes on one processor.",
        ],
    ),
    Isolation.MICROVM: Level(
        what="a kernel of its own on virtual hardware, in a confined process",
        isolated_by=f"the processor's virtualization or QEMU's emulation; around it {_ROOM}",
        shared="processor and memory through QEMU, with few virtual devices",
        runs="the same image as a container, under our kernel and agent",
        kernel="its own (Debian's cloud kernel)",
        cpu=f"whole virtual processors; {_GROUP}",
        memory=f"what it booted with, less by balloon; {_GROUP}",
        processes="the guest's own kernel",
        disk="the size of its disk",
        network="virtio NIC on a TAP",
        stop="the signal to its process, power-off, then the end of its QEMU",
        lacks=[
            "devices while it runs, reset, dump, screenshot, type and desktop: it has the few devices that its image needs, "
            "and no screen"
        ],
        not_promised=[_SIDE_CHANNELS, _READABLE],
    ),
    Isolation.UNIKERNEL: Level(
        what="a kernel that is nothing but the application, on virtual hardware, in a confined process",
        isolated_by=f"the processor's virtualization or QEMU's emulation; around it {_ROOM}",
        shared="processor and memory through QEMU, with the fewest virtual devices: a serial line, and what was asked for",
        runs="one kernel image (PVH or multiboot, ELF or raw), with an initrd if it has one",
        kernel="its own: the application is the kernel",
        cpu=f"whole virtual processors; {_GROUP}",
        memory=f"what it booted with; {_GROUP}",
        processes="none: it has no processes",
        disk="none unless asked for; then the size of its disk",
        network="virtio NIC on a TAP if asked for; the kernel must know its own address",
        stop="the power button if it listens to ACPI, then the end of its QEMU",
        lacks=[
            "exec: there is no shell and no second program in it, and nobody who could start one",
            "files (cp, ls): only its own code knows whether it has any",
            "signals but KILL and the stop signal (the power button): there is no process to send them to",
            "more memory or processors while it runs: it was booted with what it has",
            "devices while it runs, reset, dump, screenshot, type and desktop: it has what it was started with, and no screen",
        ],
        not_promised=[
            "Isolation inside: one flaw in the application is a flaw in its kernel, and it owns its whole machine.",
            _SIDE_CHANNELS,
            _READABLE,
        ],
    ),
    Isolation.VM: Level(
        what="a full machine with its own firmware and kernel, in a confined process",
        isolated_by=f"the processor's virtualization or QEMU's emulation; around it {_ROOM}",
        shared="processor and memory through QEMU, with the many devices of a whole machine",
        runs="a disk or a CD image: any operating system of this architecture",
        kernel="its own, the disk's; BIOS or UEFI, Secure Boot and a TPM if asked for",
        cpu=f"whole virtual processors; more are plugged in while it runs (emulated: only if it began with one); {_GROUP}",
        memory=f"what it has, grown and shrunk with the guest's help; {_GROUP}",
        processes="the guest's own kernel, if it bounds them",
        disk="the sizes of its disks",
        network="virtio or e1000 NICs on TAPs, plugged while it runs",
        stop="the agent, the power button (ACPI), then the end of its QEMU",
        lacks=[
            "exec and files without an agent inside (ours or qemu-guest-agent): then the console and the screen are there"
        ],
        not_promised=[
            "That a guest without drivers, agent or ACPI does what is asked of it: it is its own master inside.",
            _SIDE_CHANNELS,
            _READABLE,
        ],
    ),
    Isolation.CONFIDENTIAL: Level(
        what="a full machine whose memory the processor encrypts, which can prove by a signed report what was started",
        isolated_by=f"memory encryption by the processor (AMD SEV-SNP, Intel TDX), and all that a VM has: {_ROOM}",
        shared="processor; memory that the guest itself declares shared (its devices' buffers)",
        runs="a disk with a kernel that knows SEV-SNP or TDX, under firmware built for it",
        kernel="its own, measured at launch",
        cpu=f"whole virtual processors, fixed at launch; {_GROUP}",
        memory=f"fixed at launch, no balloon; {_GROUP}",
        processes="the guest's own kernel, if it bounds them",
        disk="the sizes of its disks; what is on them is secret only if the guest encrypts it",
        network="virtio NICs on TAPs; what crosses them is secret only if the guest encrypts it",
        stop="the agent, the power button (ACPI), then the end of its QEMU",
        lacks=[
            "dump: the host cannot read the memory, which is the point",
            "pause to disk, more memory or processors, TPM by the host and screenshot: each would let the host in",
            "emulation: without such a processor there is none, since an emulator reads everything",
        ],
        not_promised=[
            "Availability: the host can still stop it, starve it or lose its disks.",
            "Protection from physical attacks on the processor, or from side channels that its maker has not closed.",
            "Anything before somebody has checked its attestation report against keys of the maker.",
        ],
    ),
}

NEVER_PROMISED = [
    "CPU or memory beyond what is guaranteed: limits are ceilings.",
    "Availability: when the host fails, the instance is down until the host is back.",
    "Limits on disk and network throughput.",
]
