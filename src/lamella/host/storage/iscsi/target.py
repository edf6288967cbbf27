"""One iSCSI target as ``iscsi-ls`` and ``qemu-io`` show it: its LUNs, and what is written at the beginning of each.

A CHAP secret is given to libiscsi by environment and to QEMU by file: no command line has it. Sources: iscsi-ls(1), libiscsi's
README ("CHAP Authentication"), QEMU's BlockdevOptionsIscsi.
"""

import asyncio
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.host.linux import binaries
from lamella.host.storage import command, qemu_io
from lamella.host.storage.driver import Node
from lamella.host.storage.iscsi import label as labels
from lamella.host.storage.iscsi.label import BYTES, DATA, Label
from lamella.model.errors import DeadlineExceeded, Invalid, Unavailable

_SOON = 30.0
_KNOWN = {"user", "secret", "initiator"}
_PATH = re.compile(r"(?P<portal>[^/\s-][^/\s]*)/(?P<name>[a-z0-9.:-]+)")
_TARGET = re.compile(r"Target:(\S+) Portal:")
_LUN = re.compile(r"Lun:(\d+)\s+Type:(\S+)")
_DUMP = re.compile(r"^(?:qemu-io> )*[0-9a-f]{8,16}:  ((?:[0-9a-f]{2} ?){1,16})", re.MULTILINE)


class Lun(msgspec.Struct, kw_only=True):
    """``capacity`` is bytes, the label's room included. ``blank`` says that the whole first MiB is zeros, ``broken`` why its label
    cannot be read."""

    number: int
    capacity: int = 0
    label: Label | None = None
    blank: bool = False
    broken: str = ""


class Target:
    """*path* is ``portal/name``: ``10.0.0.5:3260/iqn.2026-11.com.example:pool``. Options: ``user`` and ``secret`` (the file of a CHAP
    secret), ``initiator`` (our own name)."""

    def __init__(self, path: str, options: dict[str, str]) -> None:
        self.path = path
        self.options = options
        found = _PATH.fullmatch(path)
        self.portal = found["portal"] if found else ""
        self.name = found["name"] if found else ""

    def check(self) -> None:
        """:raise Invalid: when path or options are wrong."""
        if not self.portal:
            raise Invalid(
                f"{self.path!r} is no iSCSI target",
                hint="write it as 10.0.0.5:3260/iqn.2026-11.com.example:pool",
                field="path",
            )
        unknown = sorted(set(self.options) - _KNOWN)
        if unknown:
            raise Invalid(f"an iscsi pool has no option {unknown[0]}", field="options")
        if ("user" in self.options) != ("secret" in self.options):
            raise Invalid("CHAP needs both the options user and secret", hint="secret names a file", field="options")

    def node(self, lun: int) -> Node:
        node: Node = {"driver": "iscsi", "transport": "tcp", "portal": self.portal, "target": self.name, "lun": lun}
        if "user" in self.options:
            node |= {"user": self.options["user"], "password-secret": self.options["secret"]}
        if "initiator" in self.options:
            node["initiator-name"] = self.options["initiator"]
        return node

    async def luns(self) -> list[Lun]:
        """All disks, by number, with what their beginnings say.

        :raise Unavailable: when the target does not answer or does not let us in.
        """
        argv = [str(_tool("iscsi-ls")), "-s", f"iscsi://{self.portal}/"]
        if "initiator" in self.options:
            argv[1:1] = ["-i", self.options["initiator"]]
        try:
            said = await command.run(argv, timeout=_SOON, environment=await asyncio.to_thread(self._chap))
        except DeadlineExceeded as error:
            raise Unavailable(f"iSCSI target {self.path} does not answer", hint="is its portal right?") from error
        text = said.out.decode(errors="replace")
        numbers = listed(text, self.name)
        if numbers is None or (not numbers and (said.code or said.error)):
            wrong = said.error or f"it has no target {self.name}"
            raise Unavailable(
                f"iSCSI target {self.path} cannot be used: {wrong.splitlines()[-1][-300:]}",
                hint="see portal, name, and what the target demands of initiators (CHAP, access lists)",
            )
        slots = asyncio.Semaphore(8)
        sizes = await asyncio.gather(*(self._capacity(number, slots) for number in numbers))
        return await self._look(
            [Lun(number=number, capacity=size) for number, size in zip(numbers, sizes, strict=True) if size >= 2 * DATA]
        )

    async def _capacity(self, lun: int, slots: asyncio.Semaphore) -> int:
        argv = [str(_tool("iscsi-readcapacity16")), "-s", f"iscsi://{self.portal}/{self.name}/{lun}"]
        if "initiator" in self.options:
            argv[1:1] = ["-i", self.options["initiator"]]
        async with slots:
            said = await command.run(argv, timeout=_SOON, environment=await asyncio.to_thread(self._chap))
        text = said.out.decode(errors="replace").strip()
        return int(text) if said.code == 0 and text.isdecimal() else 0

    def _chap(self) -> dict[str, str]:
        if "user" not in self.options:
            return {}
        try:
            secret = Path(self.options["secret"]).read_text().strip("\n")
        except OSError as error:
            raise Unavailable(f"the CHAP secret {error.filename} cannot be read: {error.strerror}") from error
        return {"LIBISCSI_CHAP_USERNAME": self.options["user"], "LIBISCSI_CHAP_PASSWORD": secret}

    async def _look(self, luns: list[Lun]) -> list[Lun]:
        commands = (f"read -v 0 {BYTES}", f"read -q -P 0 0 {DATA}")
        answers = await self._tell([lun.number for lun in luns], commands)
        for lun, said in zip(luns, answers, strict=True):
            lun.blank = "failed" not in said and len(dumped(said)) == BYTES
            try:
                lun.label = labels.decoded(dumped(said))
            except ValueError as error:
                lun.broken = str(error)
        return luns

    async def _tell(self, numbers: Sequence[int], commands: Sequence[str]) -> list[str]:
        """What qemu-io says to *commands* on each LUN, in one process: logins are what takes time."""
        if not numbers:
            return []
        options: list[str] = []
        lines: list[str] = []
        for number in numbers:
            options, name = qemu_io.source(self.node(number))
            lines += [f"open -r {name}", *commands, "close", f"help {_MARK}"]
        argv = [str(binaries.tool("qemu-io")), *options]
        said = await command.run(argv, timeout=_SOON * 4, stdin="\n".join([*lines, "quit", ""]).encode())
        pieces = said.out.decode(errors="replace").split(f"command {_MARK} not found")[:-1]
        if len(pieces) != len(numbers):
            raise Unavailable(f"the LUNs of iSCSI target {self.path} cannot be read: {said.error[-300:]}")
        return pieces

    async def write(self, lun: int, label: Label) -> None:
        """Write the label; it is on the disk when this returns.

        :raise Unavailable: when the LUN cannot be written.
        """
        with tempfile.NamedTemporaryFile(prefix="lamella-label-") as file:
            file.write(labels.encoded(label))
            file.flush()
            await qemu_io.tell(self.node(lun), [f"write -q -s {file.name} 0 {BYTES}", "flush"])


_MARK = "lamella-end"


def listed(text: str, name: str) -> list[int] | None:
    """Numbers of the disks of target *name* in what ``iscsi-ls -s`` says; ``None`` when it is not there."""
    here = False
    found: list[int] | None = None
    for line in text.splitlines():
        if target := _TARGET.match(line):
            here = target[1] == name
            if here:
                found = found or []
        elif here and (lun := _LUN.match(line.strip())) and lun[2] == "DIRECT_ACCESS":
            assert found is not None
            found.append(int(lun[1]))
    return None if found is None else sorted(set(found))


def dumped(text: str) -> bytes:
    """The bytes of qemu-io's ``read -v``."""
    return b"".join(bytes.fromhex(line) for line in _DUMP.findall(text))


def _tool(name: str) -> Path:
    try:
        return binaries.tool(name)
    except Unavailable as error:
        raise Unavailable(f"{name} is not installed", hint="apt install libiscsi-bin qemu-block-extra") from error
