"""Holding a guest's file systems still, by whoever answers inside."""

import contextlib

from lamella.host.compute.vm.inside import Inside
from lamella.model.errors import Conflict, DeadlineExceeded, Internal, LamellaError, Unavailable, Unsupported


async def freeze(inside: Inside, deadline: float) -> int:
    """:raise Unsupported: when nobody inside could. :raise Unavailable: when it was not done; nothing is frozen then."""
    try:
        return await inside.freeze(deadline)
    except (Unsupported, Unavailable):
        raise
    except LamellaError as error:
        with contextlib.suppress(LamellaError):
            await inside.thaw()
        raise Unavailable(f"the guest's file systems were not frozen: {error.message}", hint=error.hint) from error


async def thaw(inside: Inside) -> bool:
    """Whether everything stood still until now. Somebody who does not answer any more has thawed by itself at the deadline, or is gone."""
    try:
        return await inside.thaw()
    except (Unsupported, Unavailable, DeadlineExceeded, Conflict, Internal):
        return False
