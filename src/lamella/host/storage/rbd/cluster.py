"""One pool of a Ceph cluster as the commands ``rbd`` and ``ceph`` show it. Their exit codes are errnos (rbd(8), ceph(8)).

The commands are used rather than librbd's Python bindings because Debian builds these for the system's interpreter alone.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import msgspec

from lamella.host.linux import binaries
from lamella.host.storage import command
from lamella.host.storage.command import Said
from lamella.model.errors import DeadlineExceeded, Invalid, LamellaError, NoRoom, Unavailable

Answer = TypeVar("Answer")

SOON = 40.0
# Copying or removing a whole image.
LONG = 24 * 3600.0
# After how many seconds of waiting we look whether the pool is full.
_PATIENCE = 5.0
_CONF = Path("/etc/ceph/ceph.conf")
_KNOWN = {"conf", "user", "keyring", "namespace"}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OURS = """
[client]
{keyring}
log_file =
admin_socket =
rbd_default_clone_format = 2
"""


class Cluster:
    """*options* are ``conf`` (default /etc/ceph/ceph.conf), ``user`` (default admin), ``keyring`` and ``namespace``."""

    def __init__(self, pool: str, options: dict[str, str]) -> None:
        self.pool = pool
        self.namespace = options.get("namespace", "")
        self.user = options.get("user", "admin").removeprefix("client.")
        self._given = Path(options.get("conf") or _CONF)
        self._keyring = options.get("keyring", "")
        self._options = options
        # What the storage process and the commands are given: the operator's, with ours added once there is a place for it.
        self.conf = self._given

    def check(self) -> None:
        """:raise Invalid: when pool or options are wrong."""
        unknown = sorted(set(self._options) - _KNOWN)
        if unknown:
            raise Invalid(
                f"an rbd pool has no option {unknown[0]}",
                hint=f"options are {', '.join(sorted(_KNOWN))}",
                field="options",
            )
        for what, text in (("pool", self.pool), ("namespace", self.namespace or "x"), ("user", self.user)):
            if not text or text.startswith("-") or any(sign in text for sign in "/@ \t\n"):
                raise Invalid(
                    f"{text!r} is not the name of a Ceph {what}", field="path" if what == "pool" else "options"
                )

    async def prepare(self, place: Path | None) -> None:
        """Write the configuration that our clients get into *place*.

        :raise Unavailable: when the operator's cannot be read.
        """
        if place is not None:
            self.conf = await asyncio.to_thread(self._write, place)
        elif self._keyring:
            raise Invalid("the option keyring needs a place for a configuration of our own", field="options")

    def _write(self, place: Path) -> Path:
        try:
            text = self._given.read_text()
            if self._keyring:
                Path(self._keyring).read_bytes()
        except OSError as error:
            raise Unavailable(
                f"{error.filename} cannot be read: {error.strerror}",
                hint="copy ceph.conf and the user's keyring from the cluster, and name them by the options conf and keyring",
            ) from error
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        conf = place / "ceph.conf"
        fresh = place / f"ceph.conf.{os.getpid()}"
        fresh.write_text(text + _OURS.format(keyring=f"keyring = {self._keyring}" if self._keyring else ""))
        fresh.replace(conf)
        return conf

    def image(self, name: str, snapshot: str | None = None) -> str:
        """``pool/namespace/image@snapshot``."""
        parts = [self.pool, *([self.namespace] if self.namespace else []), name]
        return "/".join(parts) + (f"@{snapshot}" if snapshot else "")

    @property
    def _where(self) -> list[str]:
        return ["--conf", str(self.conf), "--name", f"client.{self.user}"]

    async def rbd(self, *words: str, timeout: float = SOON, fine: tuple[int, ...] = ()) -> Said:
        """``rbd WORDS``; an exit code among *fine* is returned, any other is an error.

        :raise NoRoom: when the pool or its quota is full.
        :raise Unavailable: when the cluster does not answer or refuses.
        """
        argv = [str(_tool("rbd")), *self._where, "--rados-mon-op-timeout", "15", *words]
        try:
            said = await self._while_there_is_room(command.run(argv, timeout=timeout), words[0])
        except DeadlineExceeded as error:
            raise Unavailable(
                f"Ceph did not do {words[0]} in pool {self.pool} within {timeout:g} s",
                hint="ceph -s tells what the cluster waits for",
            ) from error
        if said.code == 0 or said.code in fine:
            return said
        if said.code in _FULL:
            raise self._no_room(words[0])
        raise Unavailable(
            f"Ceph refused {words[0]} in pool {self.pool}: {_last_line(said)}", hint="ceph -s tells the cluster's state"
        )

    async def ceph(self, *words: str, timeout: float = SOON) -> bytes:
        """:raise Unavailable: when the cluster does not answer or refuses."""
        argv = [str(_tool("ceph")), *self._where, "--connect-timeout", "10", *words, "--format", "json"]
        try:
            said = await command.run(argv, timeout=timeout)
        except DeadlineExceeded as error:
            raise Unavailable(
                f"Ceph did not answer {words[0]} within {timeout:g} s", hint="is a monitor up?"
            ) from error
        if said.code:
            raise Unavailable(
                f"Ceph refused {' '.join(words[:2])}: {_last_line(said)}",
                hint=f"may client.{self.user} do that? its monitor capability has to be 'profile rbd' or more",
            )
        return said.out

    async def ceph_all(self, *questions: str) -> list[bytes]:
        """The answers to several of ``ceph``'s commands, asked by one process: starting it is most of what they take.

        :raise Unavailable: when the cluster does not answer or refuses one.
        """
        argv = [str(_tool("ceph")), *self._where, "--connect-timeout", "10", "--format", "json"]
        try:
            said = await command.run(argv, timeout=SOON, stdin="\n".join([*questions, ""]).encode())
        except DeadlineExceeded as error:
            raise Unavailable("Ceph did not answer", hint="is a monitor up?") from error
        answers = [line for line in said.out.splitlines() if line.startswith((b"{", b"["))]
        if len(answers) != len(questions):
            raise Unavailable(
                f"Ceph refused to tell of pool {self.pool}: {_last_line(said)}",
                hint=f"may client.{self.user} see that? its monitor capability has to be 'profile rbd, allow r'",
            )
        return answers

    async def rados(self, *words: str, timeout: float = SOON) -> bytes:
        """:raise Unavailable: when the cluster does not answer or refuses."""
        said = await command.run([str(_tool("rados")), *self._where, *words, "--format", "json"], timeout=timeout)
        if said.code:
            raise Unavailable(f"Ceph refused {' '.join(words[:1])}: {_last_line(said)}")
        return said.out

    async def _while_there_is_room(self, running: Coroutine[None, None, Said], what: str) -> Said:
        """A client that meets a full pool waits for room without end (Ceph's documentation, "Full cluster"): look when it takes long.

        :raise NoRoom: when the pool is full.
        """
        task = asyncio.create_task(running)
        try:
            while not (await asyncio.wait([task], timeout=_PATIENCE))[0]:
                if await self._full():
                    raise self._no_room(what)
            return await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, LamellaError):
                await task

    async def _full(self) -> bool:
        try:
            pools = decode(await self.ceph("osd", "pool", "ls", "detail"), list[_Flags])
        except Unavailable:
            return False
        return any(pool.pool_name == self.pool and "full" in pool.flags_names.split(",") for pool in pools)

    def _no_room(self, what: str) -> NoRoom:
        return NoRoom(
            f"cannot {what}: Ceph pool {self.pool} is full", hint="add OSDs, raise its quota or delete volumes"
        )


class _Flags(msgspec.Struct, kw_only=True):
    pool_name: str
    flags_names: str = ""


class Check(msgspec.Struct, kw_only=True):
    severity: str = ""
    summary: "CheckSummary"


class CheckSummary(msgspec.Struct, kw_only=True):
    message: str = ""


class Health(msgspec.Struct, kw_only=True):
    """``ceph health``."""

    status: str = ""
    checks: dict[str, Check] = {}


def decode(text: bytes, kind: type[Answer]) -> Answer:
    """:raise Unavailable: when *text* is not what a Ceph that we know says."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise Unavailable(f"Ceph's answer cannot be read: {error}", hint="versions 16 to 19 are known") from error


def _tool(name: str) -> Path:
    try:
        return binaries.tool(name)
    except Unavailable as error:
        raise Unavailable(f"{name} is not installed", hint="apt install ceph-common qemu-block-extra") from error


def _last_line(said: Said) -> str:
    lines = [line for line in said.error.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else f"exit code {said.code}"
