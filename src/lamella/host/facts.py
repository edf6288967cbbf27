"""What this machine is: read from the kernel."""

import os
import platform
from pathlib import Path

from lamella.host.processors.reading import read_topology
from lamella.model.host import Capability, HostStatus, Underlay
from lamella.model.resource import now
from lamella.model.storage import PoolStatus

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}


def boot_id() -> str:
    """The kernel's id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def architecture() -> str:
    """As OCI and Debian call it: ``amd64``, ``arm64``."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def memory() -> int:
    """Bytes of RAM that the kernel manages."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_facts(
    capabilities: list[Capability], pools: dict[str, PoolStatus], underlay: Underlay | None = None
) -> HostStatus:
    """This host now, with what its wings found that they can do. Blocks."""
    return HostStatus(
        phase="ready",
        cpu=len(os.sched_getaffinity(0)) * 1000,
        memory=memory(),
        architecture=architecture(),
        kernel=platform.release(),
        boot_id=boot_id(),
        capabilities=capabilities,
        pools=pools,
        underlay=underlay,
        topology=read_topology(),
        seen_at=now(),
    )
