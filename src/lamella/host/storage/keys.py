"""Keys of encrypted volumes, wrapped: what is written down opens nothing without the host's file, a passphrase or the host's TPM.

A volume's key is 32 random bytes. It is wrapped by AES-256-GCM (NIST SP 800-38D) with a key from what keeps it; the volume's id is
associated data, so that a wrapped key that is put to another volume is refused. The wrapped text is JSON in base 64 that names its
version and method. A passphrase goes through scrypt (RFC 7914) with 64 MiB of memory.
"""

import base64
import os
import secrets
import threading
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from lamella.host.compute.driver import Home
from lamella.host.linux.blocking import blocking
from lamella.host.linux.files import write_all
from lamella.host.storage.tpm import Sealed, Tpm
from lamella.model.errors import Corrupt, Forbidden, Invalid, Unavailable
from lamella.model.storage import KeyWrap

KEY_BYTES = 32
_NONCE_BYTES = 12
_SALT_BYTES = 16
# RFC 7914's N, r and p: 64 MiB and about 0.2 s.
_COST, _BLOCK, _LANES = 1 << 16, 8, 1
# A wrapped text may come from anywhere; what it asks of us stays bounded (256 MiB).
_LARGEST_COST = 1 << 18


class Wrapped(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A wrapped key as it is written down. ``cost`` and ``salt`` are of a passphrase, ``sealed`` of a TPM, ``file`` names a key file."""

    version: int
    method: KeyWrap
    nonce: bytes
    text: bytes
    salt: bytes = b""
    cost: int = 0
    file: str = ""
    sealed: Sealed | None = None


class KeyRing:
    """What unwraps keys on this host. Keys that a passphrase unwrapped are kept in memory until the daemon ends."""

    def __init__(self, home: Home, tpm: Tpm | None = None) -> None:
        self._place = home.state / "keys"
        self._tpm = tpm or Tpm(home)
        self._unlocked: dict[tuple[str, str], bytes] = {}
        # Two volumes that are made at once, in two threads, make one key file.
        self._making = threading.Lock()

    async def wrap(self, volume_id: str, key: bytes, method: KeyWrap, passphrase: str = "") -> str:
        """*key* for this volume as text that may be shown to anybody.

        :raise Invalid: when a passphrase is needed and none is given. :raise Unavailable: when this host has no TPM that answers.
        """
        nonce = os.urandom(_NONCE_BYTES)
        wrapped = Wrapped(version=1, method=method, nonce=nonce, text=b"")
        if method is KeyWrap.PASSPHRASE:
            if not passphrase:
                raise Invalid("the volume's key is kept by a passphrase, and none was given", field="passphrase")
            wrapped.salt, wrapped.cost = os.urandom(_SALT_BYTES), _COST
            outer = await blocking(_stretched, passphrase, wrapped.salt, wrapped.cost)
        elif method is KeyWrap.TPM:
            outer = os.urandom(KEY_BYTES)
            wrapped.sealed = await self._tpm.seal(outer)
        else:
            wrapped.file, outer = await blocking(self._key_file)
        wrapped.text = AESGCM(outer).encrypt(nonce, key, _bound_to(volume_id, wrapped))
        text = base64.b64encode(msgspec.json.encode(wrapped)).decode()
        if method is KeyWrap.PASSPHRASE:
            self._unlocked[volume_id, text] = key
        return text

    async def unwrap(self, volume_id: str, text: str, passphrase: str = "") -> bytes:
        """The key.

        :raise Unavailable: when a passphrase keeps it and nobody has brought one, or what keeps it is not here.
        :raise Forbidden: when the passphrase is not the one. :raise Corrupt: when *text* is no wrapped key of this volume.
        """
        wrapped = parse(text)
        if wrapped.method is KeyWrap.PASSPHRASE:
            if not passphrase:
                if (volume_id, text) in self._unlocked:
                    return self._unlocked[volume_id, text]
                raise Unavailable(
                    f"the key of volume {volume_id} is locked away behind its passphrase",
                    hint="lamella volume unlock brings it",
                )
            outer = await blocking(_stretched, passphrase, wrapped.salt, wrapped.cost)
        elif wrapped.method is KeyWrap.TPM:
            if wrapped.sealed is None:
                raise _not_of(volume_id)
            outer = await self._tpm.unseal(wrapped.sealed)
        else:
            outer = await blocking(self._read_key_file, wrapped.file)
        try:
            key = AESGCM(outer).decrypt(wrapped.nonce, wrapped.text, _bound_to(volume_id, wrapped))
        except (InvalidTag, ValueError):
            if wrapped.method is KeyWrap.PASSPHRASE:
                raise Forbidden(
                    f"this is not the passphrase of volume {volume_id}", hint="or its wrapped key is another volume's"
                ) from None
            raise _not_of(volume_id) from None
        if len(key) != KEY_BYTES:
            raise _not_of(volume_id)
        return key

    async def unlock(self, volume_id: str, text: str, passphrase: str) -> None:
        """Keep what *passphrase* unwraps. Raises what :meth:`unwrap` does."""
        self._unlocked[volume_id, text] = await self.unwrap(volume_id, text, passphrase)

    def forget(self, volume_id: str) -> None:
        self._unlocked = {known: key for known, key in self._unlocked.items() if known[0] != volume_id}

    def _key_file(self) -> tuple[str, bytes]:
        """The newest of the host's keys, made when there is none: its name and its bytes. One that is not whole wraps nothing new."""
        with self._making:
            whole = [(told.st_mtime_ns, path.name) for path, told in self._key_files() if told.st_size == KEY_BYTES]
            if whole:
                name = max(whole)[1]
                return name, self._read_key_file(name)
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            name, key = f"{secrets.token_hex(8)}.key", os.urandom(KEY_BYTES)
            # Not "*.key": what a crash leaves of it is taken for no key.
            draft = self._place / ".key.new"
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                write_all(descriptor, key)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            draft.rename(self._place / name)
            for folder in (self._place, self._place.parent):
                _sync(folder)
            return name, key

    def _key_files(self) -> list[tuple[Path, os.stat_result]]:
        # pathlib's "*" matches names that begin with a dot, too.
        return [(path, path.stat()) for path in self._place.glob("*.key") if not path.name.startswith(".")]

    def _read_key_file(self, name: str) -> bytes:
        if Path(name).name != name or not name.endswith(".key"):
            raise Corrupt("the wrapped key names no key file")
        try:
            key = (self._place / name).read_bytes()
        except OSError as error:
            raise Unavailable(
                f"the host's key file {name} cannot be read: {error.strerror}",
                hint=f"restore {self._place} from a backup of this host; without it the volume cannot be opened",
            ) from None
        if len(key) != KEY_BYTES:
            raise Corrupt(
                f"the host's key file {name} does not hold {KEY_BYTES} bytes", hint="restore it from a backup"
            )
        return key


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_key() -> bytes:
    """A volume's key."""
    return os.urandom(KEY_BYTES)


def method_of(text: str) -> KeyWrap:
    """How a wrapped key is kept. :raise Corrupt: when *text* is none."""
    return parse(text).method


def parse(text: str) -> Wrapped:
    """:raise Corrupt: when *text* is no wrapped key that this version knows."""
    try:
        wrapped = msgspec.json.decode(base64.b64decode(text, validate=True), type=Wrapped)
    except (ValueError, msgspec.DecodeError):
        raise Corrupt("this is no wrapped key", hint="take the one that the volume's status shows") from None
    if wrapped.version != 1:
        raise Corrupt(f"a wrapped key of version {wrapped.version} is not known here", hint="use a newer Lamella")
    cost = wrapped.cost
    if wrapped.method is KeyWrap.PASSPHRASE and not (2 <= cost <= _LARGEST_COST and cost & (cost - 1) == 0):
        raise Corrupt("the wrapped key asks for a cost that no passphrase was given")
    return wrapped


def _bound_to(volume_id: str, wrapped: Wrapped) -> bytes:
    return f"lamella volume key {wrapped.version} {wrapped.method.value} {volume_id}".encode()


def _not_of(volume_id: str) -> Corrupt:
    return Corrupt(
        f"the wrapped key is not one of volume {volume_id}, or was changed",
        hint="take the one that the volume's status showed when it was made, and the host's own keys",
    )


def _stretched(passphrase: str, salt: bytes, cost: int) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=cost, r=_BLOCK, p=_LANES).derive(passphrase.encode())
