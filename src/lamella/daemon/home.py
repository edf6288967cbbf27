"""Where a layer lives, and who may be its daemon."""

import fcntl
import hashlib
import os
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.model.errors import Conflict, Invalid

DEFAULT = Path("/var/lib/lamella")


def find_home(given: str | None) -> Home:
    """The home in *given*, else in ``LAMELLA_HOME``, else the system's. Its mark follows from its path.

    :raise Invalid: when the path is not absolute or holds bytes that no configuration file can carry.
    """
    text = given or os.environ.get("LAMELLA_HOME") or str(DEFAULT)
    path = Path(text)
    if not path.is_absolute():
        path = Path.cwd() / path
    path = Path(os.path.normpath(path))
    if any(character in str(path) for character in "\n:,\\"):
        raise Invalid(
            f"LAMELLA_HOME {str(path)!r} holds a colon, comma, backslash or line end", hint="choose another directory"
        )
    digest = hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()
    return Home(path=path, mark=f"lamella-{digest}")


def furnish(home: Home) -> None:
    """Make the directories. Others may pass through to the socket; state is for root alone."""
    home.path.mkdir(parents=True, exist_ok=True)
    for path, mode in ((home.state, 0o700), (home.run, 0o711)):
        path.mkdir(exist_ok=True)
        path.chmod(mode)


def lock(home: Home) -> int:
    """Be the one daemon of this home until this process ends. Returns the descriptor that holds the lock.

    :raise Conflict: when another one is.
    """
    descriptor = os.open(home.run / "lamellad.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Conflict(f"a daemon is running in {home.path} already (pid {holder})", hint="stop it first") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
