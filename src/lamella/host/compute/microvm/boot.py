"""Kernel and initramfs that every microVM boots: from Debian's cloud kernel package and our agent."""

from pathlib import Path

import msgspec


class BootFiles(msgspec.Struct, kw_only=True, frozen=True):
    """``digest`` names the pair: it changes when kernel, modules or agent do."""

    kernel: Path
    initramfs: Path
    kernel_version: str
    digest: str


def boot_files(state: Path) -> BootFiles:
    """The boot files under *state* (Home.state).

    :raise Unavailable: when they were never made (``./dev setup`` makes them).
    """
    raise NotImplementedError
