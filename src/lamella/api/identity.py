"""Who asks: from what the transport proved to a :class:`Principal`. Whatever headers say is not looked at."""

import grp
import os
import pwd
import time

from lamella.model.errors import Unauthenticated
from lamella.model.requests import Principal
from lamella.wire.identity import Peer, principal_of

GROUP = "lamella"
_REMEMBER_SECONDS = 2.0


class Identity:
    """Names the owner of a connection; membership of the group is asked anew every two seconds, so that leaving it takes effect."""

    def __init__(self, *, group: str = GROUP) -> None:
        self._group = group
        self._known: dict[tuple[int, int], tuple[float, Principal]] = {}

    def of(self, peer: Peer | None) -> Principal:
        """The principal behind *peer*.

        :raise Unauthenticated: when the transport proved nothing.
        """
        if peer is None:
            raise Unauthenticated(
                "this connection does not prove who you are",
                hint="use the Unix socket of the layer, or a client certificate that the layer issued",
            )
        if peer.uid is None or peer.gid is None:
            return principal_of(peer)
        key, now = (peer.uid, peer.gid), time.monotonic()
        known = self._known.get(key)
        if known is None or known[0] < now:
            if len(self._known) > 1000:
                self._known.clear()
            known = (now + _REMEMBER_SECONDS, self._user(peer.uid, peer.gid))
            self._known[key] = known
        return known[1]

    def _user(self, uid: int, gid: int) -> Principal:
        try:
            user = pwd.getpwuid(uid).pw_name
        except KeyError:
            user = str(uid)
        # Who runs the daemon owns all that it has; an unprivileged daemon of one's own must not lock its owner out.
        admin = uid in (0, os.geteuid()) or self._member(user, gid)
        return Principal(name=f"unix:{user}", admin=admin)

    def _member(self, user: str, gid: int) -> bool:
        try:
            group = grp.getgrnam(self._group)
        except KeyError:
            return False
        return gid == group.gr_gid or user in group.gr_mem
