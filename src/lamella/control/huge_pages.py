"""Which huge pages a host has, who holds them, and what would fit."""

from collections.abc import Iterable, Sequence

from lamella.control import shares
from lamella.model.errors import Conflict, Invalid, NoRoom, Unsupported
from lamella.model.host import Host, HostSpec
from lamella.model.instance import Instance, InstanceSpec, Isolation
from lamella.model.quantity import format_size, parse_size
from lamella.model.sizes import DEFAULT_MEMORY
from lamella.store.store import Transaction

# Levels whose memory may be made of them.
_LEVELS = (Isolation.VM, Isolation.MICROVM)


def sizes_of(host: Host) -> list[int]:
    """Sizes in bytes of the huge pages that the host's kernel knows, smallest first."""
    nodes = host.status.topology.nodes if host.status.topology is not None else []
    return sorted({pages.size for node in nodes for pages in node.huge_pages})


def apart(host: Host, size: int) -> int:
    """How many pages of *size* bytes are set apart there: by its policy, else as the host told them."""
    asked = host.spec.huge_pages or {}
    if (count := asked.get(format_size(size))) is not None:
        return count
    nodes = host.status.topology.nodes if host.status.topology is not None else []
    return sum(pages.total for node in nodes for pages in node.huge_pages if pages.size == size)


def pages_for(spec: InstanceSpec, memory: int) -> int:
    """How many of its huge pages *memory* bytes are."""
    return -(-memory // spec.huge_pages) if spec.huge_pages else 0


def held(instances: Iterable[Instance], size: int) -> int:
    """How many pages of *size* bytes these hold: those that run, or may begin to."""
    return sum(
        pages_for(item.spec, memory_of(item.spec))
        for item in instances
        if item.spec.huge_pages == size and shares.counts(item)
    )


def memory_of(spec: InstanceSpec) -> int:
    """Bytes that a machine starts with."""
    return spec.memory or DEFAULT_MEMORY.get(spec.isolation, 0)


def check_reservation(host: Host, wanted: HostSpec, here: Sequence[Instance]) -> dict[str, int]:
    """The pages of *wanted*, their sizes as people write them.

    :raise Invalid: when the host has no pages of such a size, or less memory. :raise Conflict: when the instances *here* hold more.
    """
    known = sizes_of(host)
    found: dict[str, int] = {}
    whole = 0
    for text, count in (wanted.huge_pages or {}).items():
        size = parse_size(text, field="spec.huge_pages")
        if size not in known:
            raise Invalid(
                f"host {host.name} has no pages of {text}",
                hint=f"it has {', '.join(map(format_size, known))}" if known else "its kernel has no huge pages at all",
                field="spec.huge_pages",
            )
        used = held(here, size)
        if count < used:
            raise Conflict(
                f"instances of host {host.name} hold {used} pages of {format_size(size)}, and {count} would be left",
                hint=f"stop some of them, or keep {used}",
            )
        found[format_size(size)] = count
        whole += size * count
    guaranteed = sum(shares.share_of(item.spec).memory_guarantee for item in here if shares.counts(item))
    room = max(0, host.status.memory - wanted.reserve.memory - guaranteed)
    if host.status.memory and whole > room:
        raise Invalid(
            f"{format_size(whole)} of huge pages do not fit into host {host.name}, which has {format_size(room)} beside its reserve"
            " and what is guaranteed",
            hint="ask for fewer pages: what is set apart is nobody else's",
            field="spec.huge_pages",
        )
    return found


def check_given_back(host: Host, here: Iterable[Instance]) -> None:
    """That none of the instances *here* holds pages that the policy of *host* sets apart, now that it is to set none.

    :raise Conflict: when one does.
    """
    holding = list(here)
    for text in host.spec.huge_pages or {}:
        if used := held(holding, parse_size(text, field="spec.huge_pages")):
            raise Conflict(
                f"instances of host {host.name} hold {used} pages of {text}, which would be given back",
                hint=f"stop them first, or keep {text}={used}",
            )


def check_machine(spec: InstanceSpec) -> None:
    """That the level has use for huge pages, and the memory is whole pages.

    :raise Unsupported: when it is no machine. :raise Invalid: when the memory is no multiple of a page.
    """
    size = spec.huge_pages
    if not size:
        return
    if spec.isolation not in _LEVELS:
        raise Unsupported(
            f"a {spec.isolation} has no memory of its own that could be huge pages",
            hint="--isolation vm and microvm have",
            field="spec.huge_pages",
        )
    if size & (size - 1):
        raise Invalid(f"no page has {format_size(size)}", hint="2MiB, or 1GiB", field="spec.huge_pages")
    if memory_of(spec) % size:
        raise Invalid(
            f"{format_size(memory_of(spec))} of memory are not whole pages of {format_size(size)}",
            hint=f"ask for --memory {format_size(-(-memory_of(spec) // size) * size)}",
            field="spec.memory",
        )


def with_room(spec: InstanceSpec, hosts: Sequence[Host], instances: Sequence[Instance]) -> list[Host]:
    """Those of *hosts* that have the pages for one more machine as *spec*; all of them when it asks for none.

    :raise NoRoom: when none has; the sentence says what each has free.
    """
    size = spec.huge_pages
    if not size or not hosts:
        return list(hosts)
    needed = pages_for(spec, memory_of(spec))
    found: list[Host] = []
    reasons: list[str] = []
    for host in hosts:
        here = [item for item in instances if item.status.host == host.id]
        free = apart(host, size) - held(here, size)
        if free >= needed:
            found.append(host)
        else:
            reasons.append(f"{host.name} has {max(0, free)} of {apart(host, size)} free")
    if not found:
        raise NoRoom(
            f"no host has {needed} pages of {format_size(size)} free ({'; '.join(reasons)})",
            hint=f"lamella host set NAME --huge-pages {format_size(size)}=N sets more apart; or ask for less --memory",
        )
    return found


def check_start(tx: Transaction, instance: Instance) -> None:
    """That its host has the pages for it, now that it is to run again.

    :raise NoRoom: when others hold them.
    """
    host: Host | None = tx.by_id(instance.status.host or "")
    if instance.spec.huge_pages and host is not None:
        others: list[Instance] = [item for item in tx.list("instance") if item.id != instance.id]
        with_room(instance.spec, [host], others)
