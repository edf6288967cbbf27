"""Secrets that only this machine's TPM gives back: sealed under its owner hierarchy, by tpm2-tools (tpm2_create(1), tpm2_unseal(1)).

``LAMELLA_TPM`` says how the TPM is reached, as tpm2-tools' ``--tcti`` takes it (``device:/dev/tpmrm0``, ``swtpm:path=/run/tpm.sock``).
The parent key is the standard one, which a TPM makes anew from its seed each time: nothing of ours is kept in it. Secrets go through
pipes alone.
"""

import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.linux.blocking import blocking
from lamella.host.linux.processes import environment
from lamella.model.errors import Unavailable

VARIABLE = "LAMELLA_TPM"
_DEVICE = "device:/dev/tpmrm0"
_DEADLINE = 30.0


class Sealed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A TPM object: its public part and its private one, which is encrypted by the TPM."""

    public: bytes
    private: bytes


class Tpm:
    """One TPM. *tcti* is how it is reached; by default what the environment says, else the kernel's resource manager."""

    def __init__(self, home: Home, tcti: str = "") -> None:
        self._home = home
        self._tcti = tcti or os.environ.get(VARIABLE, _DEVICE)
        # A TPM without a resource manager holds three objects: one caller at a time.
        self._one = threading.Lock()

    async def seal(self, secret: bytes) -> Sealed:
        """:raise Unavailable: when there is no TPM that answers, or no tpm2-tools."""
        return await blocking(self._seal, secret)

    async def unseal(self, sealed: Sealed) -> bytes:
        """:raise Unavailable: when it was sealed by another TPM, or this one does not answer."""
        return await blocking(self._unseal, sealed)

    def _seal(self, secret: bytes) -> Sealed:
        with self._one, self._folder() as name:
            place = Path(name)
            parent, public, private = place / "parent", place / "public", place / "private"
            self._parent(parent)
            self._run("tpm2_create", "-C", parent, "-u", public, "-r", private, "-i", "-", secret=secret)
            return Sealed(public=public.read_bytes(), private=private.read_bytes())

    def _unseal(self, sealed: Sealed) -> bytes:
        with self._one, self._folder() as name:
            place = Path(name)
            parent, public, private, loaded = place / "parent", place / "public", place / "private", place / "loaded"
            public.write_bytes(sealed.public)
            private.write_bytes(sealed.private)
            self._parent(parent)
            self._run("tpm2_load", "-C", parent, "-u", public, "-r", private, "-c", loaded)
            self._forget_transient()
            try:
                return self._run("tpm2_unseal", "-c", loaded)
            finally:
                self._forget_transient()

    def _parent(self, context: Path) -> None:
        self._run("tpm2_createprimary", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", context)
        self._forget_transient()

    def _forget_transient(self) -> None:
        """Without a resource manager objects stay in the TPM, which has room for three."""
        if not self._tcti.startswith("device:/dev/tpmrm"):
            self._run("tpm2_flushcontext", "--transient-object")

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        place = self._home.run / "storage"
        place.mkdir(mode=0o711, parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="tpm-", dir=place)

    def _run(self, tool: str, *arguments: str | Path, secret: bytes | None = None) -> bytes:
        program = shutil.which(tool)
        if program is None:
            raise Unavailable(f"{tool} is not installed on this host", hint="install the Debian package tpm2-tools")
        try:
            done = subprocess.run(
                [program, "--tcti", self._tcti, *map(str, arguments)],
                input=secret if secret is not None else b"",
                capture_output=True,
                timeout=_DEADLINE,
                env=environment(self._home.mark),
            )
        except subprocess.TimeoutExpired:
            raise Unavailable("the TPM does not answer", hint=f"see {VARIABLE} and the host's TPM") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Unavailable(
                f"the TPM did not do it: {said[-1] if said else tool}",
                hint=f"a key that one TPM sealed no other can unseal; {VARIABLE} says which is used ({self._tcti})",
            )
        return done.stdout
