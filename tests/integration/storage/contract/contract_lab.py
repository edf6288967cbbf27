"""What a storage driver brings to the contract suite: a pool of its own on the real thing, and how QEMU reaches it.

A driver takes part by a file ``lab_<driver>.py`` in this folder, found by its name, with one context manager:

    @contextmanager
    def lab(scratch: Path) -> Iterator[Lab]:
        with something_real(scratch) as place:        # pytest.skip(reason) when a probe says that it cannot run here
            yield Lab(name="rbd", driver="lamella.host.storage.rbd:RbdDriver", path=place, scratch=scratch, …)

A session fixture that it needs is named in ``STANDS_ON = ("ceph",)`` and given after *scratch*.
It is entered once a driver and run; each test leaves the pool empty (``pool`` deletes what is there). Everything is read and
written by ``qemu-io`` and ``qemu-img`` through the driver's own ``node()``, so that no test knows where bytes lie.
"""

import hashlib
import importlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamella.host.storage.driver import Node, Placed, StorageDriver
from lamella.model.errors import LamellaError

MIB = 1 << 20
TOOL_DEADLINE = 60.0


@dataclass
class Lab:
    """One driver under test. The numbers bound what a slow driver has to stand; a quick one keeps them."""

    name: str
    driver: str
    """``module:Class``, as an entry point says it; a child process that is killed makes it from this too."""
    path: str
    scratch: Path
    options: dict[str, str] = field(default_factory=dict[str, str])
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """For QEMU's tools and for killed children: CEPH_CONF and the like."""
    prefix: list[str] = field(default_factory=list[str])
    """Goes before every command, such as ``nsenter --net=…``."""
    foreign_volumes: int = 1000
    """How many small volumes are written and deleted in search of foreign bytes."""
    depth: int = 32
    """How many snapshots one volume gets."""
    cuts: int = 8
    """How often a process is killed, for each verb."""
    verb_takes: float | None = None
    """Cuts come within this many seconds; ``None``: within what the verb takes, which one that is let go to its end tells."""
    clone_bytes: int = 4 * MIB
    """What a clone may take in the pool, however large its source."""
    tells_room_at_once: bool = True
    """Whether the pool's free bytes are those of now; else what a clone takes is what it says itself."""
    grain: int = 1 << 20
    """Delta extents are exact to this many bytes."""
    refuses_second_writer: bool = True
    """Whether QEMU's own locks keep a second writer out (RBD: blocklists do; iSCSI: the layer's claims alone)."""
    restores_at_once: bool = True
    """Whether a restore that is cut short is there or not; else it may be some of both until it is asked again."""

    def make(self) -> StorageDriver:
        """The driver, not opened, as the daemon of this host makes it each time that it starts."""
        return driver(self.described())

    def run(
        self, *command: str, stdin: bytes = b"", check: bool = True, timeout: float = TOOL_DEADLINE
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*self.prefix, *command],
            env={**os.environ, **self.environment, "LC_ALL": "C.UTF-8"},
            input=stdin,
            capture_output=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {(done.stdout + done.stderr).decode(errors='replace')[-3000:]}")
        return done

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Running on, with pipes; stderr goes with stdout."""
        return subprocess.Popen(
            [*self.prefix, *command],
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def io(self, node: Node, *commands: str, read_only: bool = False) -> str:
        """qemu-io's commands on one opened node; an error of any of them is raised."""
        return self.script([(node, commands)], read_only=read_only)

    def script(self, work: Sequence[tuple[Node, Sequence[str]]], *, read_only: bool = False) -> str:
        """Commands on many nodes, opened one after the other by a single qemu-io."""
        lines: list[str] = []
        said = ""
        for node, commands in work:
            # A line of its standard input may have 1024 bytes (qemu-io.c, MAXREADLINESZ).
            if len(image(node)) > 900:
                given = [part for command in commands for part in ("-c", command)]
                said += self._io("qemu-io", *(["-r"] if read_only else []), *given, image(node))
            else:
                lines += [f"open {'-r ' if read_only else ''}{image(node)}", *commands, "close"]
        if lines:
            said += self._io("qemu-io", stdin="\n".join([*lines, "quit", ""]).encode())
        return said

    def _io(self, *command: str, stdin: bytes = b"") -> str:
        done = self.run(*command, stdin=stdin, check=False)
        said = (done.stdout + done.stderr).decode(errors="replace")
        wrong = [
            line
            for line in said.splitlines()
            if any(mark in line for mark in ("failed", "can't open", "rror", "Failed", "non-numeric", "no file open"))
        ]
        if done.returncode or wrong:
            raise AssertionError("\n".join(wrong) or said[-2000:])
        return said

    def write(self, node: Node, pattern: int, offset: int, length: int) -> None:
        self.io(node, f"write -P {pattern} {offset} {length}", "flush")

    def expect(self, node: Node, *wanted: tuple[int, int, int], read_only: bool = False) -> None:
        """Each (pattern, offset, length) is what is read."""
        self.io(node, *(f"read -P {pattern} {at} {length}" for pattern, at, length in wanted), read_only=read_only)

    def size(self, node: Node) -> int:
        told = self.run("qemu-img", "measure", "-U", "-O", "raw", "--output=json", image(node)).stdout
        return json.loads(told)["fully-allocated"]

    def digest(self, node: Node) -> str:
        """Of everything that is read, with its length."""
        target = self.scratch / f"digest-{os.getpid()}.raw"
        try:
            self.run("qemu-img", "convert", "-U", "-O", "raw", image(node), str(target))
            with target.open("rb") as file:
                return f"{target.stat().st_size}:{hashlib.file_digest(file, 'blake2b').hexdigest()}"
        finally:
            target.unlink(missing_ok=True)

    def described(self) -> dict[str, Any]:
        """What a child process needs to make the driver."""
        place = str(self.scratch / "place")
        return {"driver": self.driver, "path": self.path, "options": self.options, "place": place}


def driver(described: dict[str, Any]) -> StorageDriver:
    """Of what :meth:`Lab.described` says."""
    module, _, name = described["driver"].partition(":")
    made: StorageDriver = getattr(importlib.import_module(module), name)(Path(described["path"]), described["options"])
    if isinstance(made, Placed):
        made.place(Path(described["place"]), "lamella-contract")
    return made


def image(node: Node) -> str:
    """*node* as QEMU's tools take it on a command line."""
    return "json:" + json.dumps(node, separators=(",", ":"))


async def refused(what: Any, *kinds: type[LamellaError]) -> LamellaError:
    """The error of *kinds* that awaiting *what* raises, which has a sentence for people."""
    try:
        await what
    except kinds as error:
        assert error.message, "an error says nothing"
        return error
    raise AssertionError(f"nothing was raised; {kinds} expected")
