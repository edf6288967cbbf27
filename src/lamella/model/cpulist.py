"""Sets of processors as Linux writes them (cpuset(7), "Formats"). Pure."""

from collections.abc import Iterable


def parse_list(text: str) -> list[int]:
    """``0-2,8`` is 0, 1, 2, 8. :raise ValueError: when it is no such list."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)


def parse_map(text: str) -> list[int]:
    """``ff,00000001``: bits in groups of 32, the highest first. :raise ValueError: when it is no such map."""
    bits = int("".join(part.zfill(8) for part in text.strip().split(",")) or "0", 16)
    return [place for place in range(bits.bit_length()) if bits >> place & 1]


def format_list(cpus: Iterable[int]) -> str:
    """The shortest that :func:`parse_list` reads as *cpus*."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1][1:] = [cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(map(str, run)) for run in runs)
