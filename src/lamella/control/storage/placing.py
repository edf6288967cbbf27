"""Which host makes a new volume. Pure."""

from collections.abc import Sequence

from lamella.model.errors import Unavailable
from lamella.model.host import Host
from lamella.model.storage import Pool


def host_for(pool: Pool, hosts: Sequence[Host]) -> Host:
    """The ready host with the most room in *pool*.

    :raise Unavailable: when none that is there has it open.
    """
    able = [host for host in hosts if host.status.phase == "ready" and pool.name in host.status.pools]
    if not able:
        raise Unavailable(
            f"pool {pool.name} is open on no host that is there", hint="lamella host ls, and lamella pool show"
        )
    return min(able, key=lambda host: (-host.status.pools[pool.name].free, host.id))
