"""Which host made what is half done in a pool that many hosts share.

A host finishes or drops after a crash what it began itself. What another one began may be going on at this moment: taking a Ceph image
or a LUN out of its hands would destroy what it is writing.
"""

import os
import secrets
from pathlib import Path

_BYTES = 4


def passing() -> str:
    """For a driver that was given no place: of this process alone."""
    return secrets.token_hex(_BYTES)


def lasting(place: Path) -> str:
    """What stands for this host and layer in names and labels: random, made once, kept in *place* for good."""
    path = place / "owner"
    if not path.exists():
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = place / f"owner.{os.getpid()}"
        fresh.write_text(passing())
        fresh.replace(path)
    return path.read_text()
