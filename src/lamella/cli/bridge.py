"""Between viewers on this machine and a screen elsewhere: TCP connections on one side, WebSockets on the other."""

import select
import socket

from lamella.cli.pump import frame_of
from lamella.client.msgpack import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lamella.client.blocking.channel import Channel

_PIECE = 64 << 10  # the largest frame that the daemon takes
_QUEUE = 256 << 10  # what may wait on one side before the other is not read


class Pair:
    """One viewer's connection and the channel that carries it."""

    def __init__(self, viewer: socket.socket, channel: "Channel") -> None:
        viewer.setblocking(False)
        self._viewer = viewer
        self._channel = channel
        self._unseen = bytearray()
        self._over = False
        self.viewer = viewer.fileno()
        self.far = channel.poll_with()

    def wanted(self) -> "list[tuple[int, int]]":
        """Descriptors and the events that are waited for: neither side is read while the other does not take it."""
        far = (select.POLLIN if len(self._unseen) < _QUEUE else 0) | (select.POLLOUT if self._channel.unsent else 0)
        near = (select.POLLIN if self._channel.unsent < _QUEUE else 0) | (select.POLLOUT if self._unseen else 0)
        return [(self.far, far), (self.viewer, near)]

    def step(self, ready: "dict[int, int]") -> bool:
        """Carry what goes now; whether there is more to come.

        :raise LamellaError: what the daemon said was wrong, or that it is gone.
        """
        near, far = ready.get(self.viewer, 0), ready.get(self.far, 0)
        if far & select.POLLOUT:
            self._channel.flush()
        if far & ~select.POLLOUT:
            self._channel.advance()
        self._arrived()
        if near & ~select.POLLOUT and not self._read():
            return False
        return self._write() and not (self._over and not self._unseen)

    def close(self) -> None:
        self._viewer.close()
        self._channel.close()

    def _arrived(self) -> None:
        while self._channel.pending and not self._over and len(self._unseen) < _QUEUE:
            data = self._channel.receive()
            if data is None:
                self._over = True
                return
            kind, *values = frame_of(data)
            if kind == "stdout" and isinstance(values[0], bytes):
                self._unseen += values[0]
            elif kind == "exit":
                self._over = True

    def _read(self) -> bool:
        try:
            data = self._viewer.recv(_PIECE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._channel.offer(pack(("stdin", data)))
        return True

    def _write(self) -> bool:
        try:
            while self._unseen:
                del self._unseen[: self._viewer.send(memoryview(self._unseen)[:_PIECE].tobytes())]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


class Bridge:
    """Accepts viewers at *listener* and gives each a channel from *dial*, until the first that came has gone.

    With *several* (SPICE has a connection for the screen, one for the keyboard, …) others are let in while the first is there.
    """

    def __init__(self, listener: socket.socket, dial: "Callable[[], Channel]", *, several: bool) -> None:
        self._listener = listener
        self._dial = dial
        self._several = several
        self._pairs: list[Pair] = []

    def run(self, ended: int = -1) -> bool:
        """Carry bytes; whether a viewer came at all. *ended*, a descriptor, ends it when it becomes readable before one did.

        :raise LamellaError: what the daemon said was wrong, or that it is gone.
        """
        first: Pair | None = None
        try:
            while first is None or first in self._pairs:
                ready = self._wait(first is None or self._several, ended if first is None else -1)
                if self._listener.fileno() in ready:
                    pair = Pair(self._listener.accept()[0], self._dial())
                    self._pairs.append(pair)
                    first = first or pair
                    if not self._several:
                        self._listener.close()
                elif first is None and ended in ready:
                    return False
                for pair in list(self._pairs):
                    if not pair.step(ready):
                        self._pairs.remove(pair)
                        pair.close()
            return True
        finally:
            for pair in self._pairs:
                pair.close()

    def _wait(self, listening: bool, ended: int) -> "dict[int, int]":
        poll = select.poll()
        if listening and self._listener.fileno() >= 0:
            poll.register(self._listener.fileno(), select.POLLIN)
        if ended >= 0:
            poll.register(ended, select.POLLIN)
        for pair in self._pairs:
            for descriptor, events in pair.wanted():
                poll.register(descriptor, events)
        return dict(poll.poll())
