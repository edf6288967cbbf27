"""What a machine's memory is made of: small pages, which the kernel may merge with equal ones (KSM), or huge pages that were set apart.

Every machine starts with ``mem-merge=off``: nobody shares a page before the host's policy says so. Afterwards it is a property of the
memory's backend, which QEMU follows with madvise(2) at once (QEMU, ``backends/hostmem.c``).
"""

from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.qemu.monitor import Monitor
from lamella.model.errors import NoRoom, Unsupported
from lamella.model.quantity import format_size

# Ends the value of ``-machine``.
OWN_PAGES = ",mem-merge=off"
_BACKEND = "ram"
HUGE_PAGES = Path("/sys/kernel/mm/hugepages")


class _Memory(msgspec.Struct):
    id: str
    merge: bool


async def merged(monitor: Monitor) -> bool:
    """Whether equal pages of any of its memory may be merged."""
    return any(part.merge for part in await monitor.ask(list[_Memory], "query-memdev"))


async def merge(monitor: Monitor, on: bool) -> None:
    """Let equal pages of its memory be merged from now on, or give it pages of its own again; those exist when this returns."""
    for part in await monitor.ask(list[_Memory], "query-memdev"):
        if part.merge != on:
            path = {"path": f"/objects/{part.id}", "property": "merge", "value": on}
            await monitor.execute("qom-set", path, deadline=60.0)


def board(size: int | None) -> str:
    """What ``-machine`` says of memory; *size* is that of its huge pages in bytes, ``None`` without."""
    return OWN_PAGES if size is None else f"{OWN_PAGES},memory-backend={_BACKEND}"


def backend(memory: int, size: int | None) -> list[str]:
    """The object that is *memory* bytes of huge pages of *size* bytes; they are reserved at its start. Empty without."""
    if size is None:
        return []
    kind = f"memory-backend-memfd,id={_BACKEND},size={memory},hugetlb=on,hugetlbsize={size},merge=off"
    return ["-object", kind]


def check(memory: int, size: int | None, place: Path = HUGE_PAGES) -> None:
    """That the kernel has the pages now. Blocks.

    :raise Unsupported: when it has none of that size. :raise NoRoom: when too few are free.
    """
    if size is None:
        return
    pages = place / f"hugepages-{size >> 10}kB"
    known = _number(pages / "nr_hugepages")
    if known is None:
        raise Unsupported(f"this host's kernel has no pages of {format_size(size)}", field="huge_pages")
    free = max(0, (_number(pages / "free_hugepages") or 0) - (_number(pages / "resv_hugepages") or 0))
    needed = -(-memory // size)
    if free < needed:
        raise NoRoom(
            f"{needed} pages of {format_size(size)} are needed, and {free} of {known} are free",
            hint=f"lamella host set --huge-pages {format_size(size)}=N sets more apart",
        )


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
