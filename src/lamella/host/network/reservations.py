"""Host ports that are ours, held by sockets that are bound and never listen.

The rules alone would shadow a program that listens on the same port, without a word to anybody. A bound socket makes the
kernel tell both sides: us when the port is taken, and whoever comes later that we have it.
"""

import errno
import random
import socket
from contextlib import suppress

from lamella.host.network.plan import EPHEMERAL
from lamella.model.errors import Conflict, Internal, Invalid, NoRoom

Key = tuple[str, str, int]

_TRIES = 200


class Reservations:
    """Used by the thread of the host's namespace only. A key is (protocol, host address, host port)."""

    def __init__(self) -> None:
        self._held: dict[Key, socket.socket] = {}

    def take(self, protocol: str, address: str, port: int) -> Key:
        """Hold a port; 0 takes a free one of 32768 to 60999.

        :raise Conflict: when the port is in use on the host.
        :raise Invalid: when *address* is not the host's.
        :raise NoRoom: when no free port was found.
        """
        if port:
            return self._hold(protocol, address, port)
        for candidate in random.sample(EPHEMERAL, _TRIES):
            with suppress(Conflict):
                return self._hold(protocol, address, candidate)
        raise NoRoom(f"no free {protocol} port on host address {address}", hint="name a host port that is free")

    def _hold(self, protocol: str, address: str, port: int) -> Key:
        key = (protocol, address, port)
        if key in self._held:
            raise _taken(protocol, address, port)
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        holder = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
        try:
            try:
                holder.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or protocol != "tcp":
                    raise
                # A connection that is over but remembered (TIME_WAIT) is no reason to refuse.
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.bind((address, port))
        except OSError as error:
            holder.close()
            if error.errno == errno.EADDRINUSE:
                raise _taken(protocol, address, port) from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise Invalid(
                    f"host address {address} is not an address of this host",
                    hint="use one of the host's addresses, or 0.0.0.0 for all of them",
                    field="publish",
                ) from error
            raise Internal(f"cannot reserve {address}:{port}/{protocol}: {error.strerror}") from error
        self._held[key] = holder
        return key

    def release(self, key: Key) -> None:
        holder = self._held.pop(key, None)
        if holder is not None:
            holder.close()

    def close(self) -> None:
        for key in list(self._held):
            self.release(key)


def _taken(protocol: str, address: str, port: int) -> Conflict:
    return Conflict(
        f"host port {port}/{protocol} on {address} is in use",
        hint="choose another host port, or 0 for any free one",
        field="publish",
    )
