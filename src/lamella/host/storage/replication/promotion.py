"""Whether a replica may take its source's place, from what is known of both. Pure."""

import msgspec

from lamella.model.errors import Conflict


class Known(msgspec.Struct, kw_only=True, frozen=True):
    """``whole``: there is a whole copy. ``reachable``: the source's pool answers. ``open``: somebody has the source open.
    ``newer``: the source differs from the copy (``None``: that cannot be told). ``degraded``: writes were acknowledged with one copy."""

    whole: bool
    reachable: bool
    open: bool
    newer: bool | None
    degraded: bool = False


def check(known: Known, *, name: str, age: str, force: bool) -> None:
    """:raise Conflict: when acknowledged writes would be lost and *force* is not set, or when there is nothing to promote.

    What somebody has open is never promoted away under them, forced or not.
    """
    if not known.whole:
        raise Conflict(f"there is no whole copy of {name} yet", hint="lamella replication show tells how far it is")
    if known.open and known.reachable:
        raise Conflict(
            f"{name} is open: what is written to it from now on would be lost",
            hint="stop the instance, or detach the volume; then promote",
        )
    if force:
        return
    if known.degraded:
        raise Conflict(
            f"writes to {name} were acknowledged that the replica does not have",
            hint="wait until it is resynchronised, or --force: they are lost then",
        )
    if not known.reachable:
        raise Conflict(
            f"the pool of {name} does not answer: what was written after the newest copy ({age} old) cannot be had",
            hint="--force promotes that copy",
        )
    if known.newer is not False:
        raise Conflict(
            f"{name} has writes that the replica does not have; the newest copy is {age} old",
            hint="resume the replication and let one cycle end, or --force: they are lost then",
        )
