"""The kernel's side of a policy: KSM begun or ended, huge pages set apart, each compared with what is and changed where it differs.

Sources: Documentation/admin-guide/mm/ksm.rst and hugetlbpage.rst of the kernel.
"""

from collections.abc import Mapping
from typing import Final

from lamella.host.sharing.settings import Settings
from lamella.model.host import Capability, SamePages
from lamella.model.quantity import format_size, parse_size

# A page is looked at in batches of SCANNED, with PAUSE milliseconds between them: some 40 000 pages (160 MiB) a second at most, where the
# kernel's own default is 5 000. What that costs is in docs/performance/sharing.md.
SCANNED: Final = 2000
PAUSE: Final = 50

# Values of ksm/run.
_STOP, _RUN, _UNMERGE = "0", "1", "2"


def use_same_pages(settings: Settings, policy: SamePages | None) -> list[str]:
    """Have the kernel merge, or not; returns sentences on what is not so. ``None`` puts back what was. Blocks while pages are unmerged."""
    if policy is None:
        return settings.restore("ksm/")
    if settings.read("ksm/run") is None:
        return [] if policy is SamePages.OFF else ["this host's kernel has no KSM: no equal pages are merged"]
    try:
        if policy is SamePages.OFF:
            settings.write("ksm/run", _UNMERGE)
            return []
        # With an advisor the kernel chooses the rate itself, and refuses another one.
        if "[none]" in (settings.read("ksm/advisor_mode") or "[none]"):
            settings.write("ksm/pages_to_scan", str(SCANNED))
        settings.write("ksm/sleep_millisecs", str(PAUSE))
        settings.write("ksm/run", _RUN)
    except OSError as error:
        return [f"KSM cannot be set on this host: {error.strerror}"]
    return []


def same_pages(settings: Settings) -> str:
    """What the kernel does about equal pages, in words."""
    words = {_STOP: "the kernel does not look for any", _RUN: "on", _UNMERGE: "off"}
    return words.get(settings.read("ksm/run") or "", "this kernel has none")


def use_huge_pages(settings: Settings, wanted: Mapping[str, int] | None) -> list[str]:
    """Set so many apart, by their size; returns sentences on what is not so. Sizes that are not *wanted* are put back."""
    names = {_name(text): (text, count) for text, count in (wanted or {}).items()}
    problems: list[str] = []
    for name in settings.saved("hugepages/"):
        if name not in names:
            problems += settings.restore(name)
    for name, (text, count) in names.items():
        if settings.read(name) is None:
            problems.append(f"this host's kernel has no pages of {text}")
            continue
        try:
            settings.write(name, str(count))
        except OSError as error:
            problems.append(f"no pages of {text} can be set apart on this host: {error.strerror}")
            continue
        got = int(settings.read(name) or 0)
        if got < count:
            problems.append(
                f"{count} pages of {text} are asked for, and the kernel found room for {got}: its free memory is in pieces"
                f" ({format_size(parse_size(text) * got)} are set apart)"
            )
    return problems


def capabilities(settings: Settings) -> list[Capability]:
    """What this host's kernel can share and set apart. Blocks."""
    ksm, thp = settings.read("ksm/run"), settings.read("transparent_hugepage/enabled")
    sizes = sorted(
        int(name.removeprefix("hugepages-").removesuffix("kB")) << 10 for name in settings.names("hugepages")
    )
    chosen = (thp or "").partition("[")[2].partition("]")[0]
    return [
        Capability(
            name="memory.equal-pages",
            available=ksm is not None,
            reason="KSM, used by machines alone; `lamella host set --ksm`"
            if ksm is not None
            else "the kernel has no KSM",
        ),
        Capability(
            name="memory.huge-pages",
            available=bool(sizes),
            value=", ".join(map(format_size, sizes)),
            reason="set apart by `lamella host set --huge-pages`" if sizes else "the kernel has none",
        ),
        Capability(
            name="memory.transparent-huge-pages",
            available=chosen in ("always", "madvise"),
            value=chosen or "none",
            reason="for machines, which ask for them (madvise)" if chosen == "madvise" else "as the host has it",
        ),
    ]


def _name(text: str) -> str:
    return f"hugepages/hugepages-{parse_size(text) >> 10}kB/nr_hugepages"
