"""A node (arguments of ``blockdev-add``) given to qemu-io(1) and qemu-img(1), for pools whose volumes are no files.

No secret is on a command line: both tools read it from the file that the node names.
"""

import json
from collections.abc import Sequence
from typing import cast

from lamella.host.linux import binaries
from lamella.host.storage import command
from lamella.host.storage.driver import Extent, Node
from lamella.model.errors import Unavailable

LONG = 24 * 3600.0
_PIECE = 32 << 20


def source(node: Node) -> tuple[list[str], str]:
    """Options that make the node's secrets, and the file name that stands for it."""
    options: list[str] = []
    plain = _without_files(node, options)
    return options, "json:" + json.dumps(plain, separators=(",", ":"))


def target(node: Node) -> tuple[list[str], str]:
    """Like :func:`source`, for ``--target-image-opts``."""
    options: list[str] = []
    return options, ",".join(_dotted(_without_files(node, options), ""))


def _dotted(node: Node, prefix: str) -> list[str]:
    found: list[str] = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += _dotted(cast("Node", value), f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={str(value).replace(',', ',,')}")
    return found


def _without_files(node: Node, options: list[str]) -> Node:
    found: Node = {}
    for key, value in node.items():
        if key.endswith("-secret"):
            name = f"secret{len(options) // 2}"
            options += ["--object", f"secret,id={name},file={str(value).replace(',', ',,')}"]
            found[key] = name
        elif isinstance(value, dict):
            found[key] = _without_files(cast("Node", value), options)
        else:
            found[key] = value
    return found


async def tell(node: Node, commands: Sequence[str], *, environment: dict[str, str] | None = None) -> None:
    """Run qemu-io's *commands* on it, writing.

    :raise Unavailable: when it cannot be opened or a command fails.
    """
    options, name = source(node)
    # Without -t none a flush would be asked for after each write; "flush" is one of the commands.
    argv = [str(binaries.tool("qemu-io")), *options, "-t", "writeback", name]
    said = await command.run(
        argv, timeout=LONG, environment=environment, stdin="\n".join([*commands, "q", ""]).encode()
    )
    out = said.out.decode(errors="replace")
    if said.code or said.error or "failed" in out:
        wrong = said.error or next((line for line in out.splitlines() if "failed" in line), f"exit code {said.code}")
        raise Unavailable(f"the volume cannot be written: {wrong[-300:]}")


async def overwrite(node: Node, extents: Sequence[Extent], pattern: int) -> None:
    """Every byte of *extents* becomes *pattern*, on the disk."""
    commands = [
        f"write -q -P {pattern} {at} {min(_PIECE, extent.offset + extent.length - at)}"
        for extent in extents
        if not extent.zero
        for at in range(extent.offset, extent.offset + extent.length, _PIECE)
    ]
    if commands:
        await tell(node, [*commands, "flush"])


async def zero(node: Node, size: int) -> None:
    """The first *size* bytes read as zeros, given back to the target where it can."""
    piece = 1 << 30
    commands = [f"write -q -z -u {at} {min(piece, size - at)}" for at in range(0, size, piece)]
    await tell(node, [*commands, "flush"])
