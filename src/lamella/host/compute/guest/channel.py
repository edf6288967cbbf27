"""One conversation with an agent: greeting, streams, credit. What the guest may make us hold is bounded here.

A stream's window bounds what waits for its reader, the number of streams bounds the streams, and a guest that breaks a rule loses
the channel. So a hostile guest costs at most ``MOST_STREAMS`` windows.
"""

import asyncio
import fcntl
import os
import struct
import termios
from collections import deque
from typing import Self

from lamella.host.compute.guest.fields import Fields, Tag, Verb, body
from lamella.host.compute.guest.frames import (
    FRAME_COST,
    LARGEST_PAYLOAD,
    MORE,
    MOST_STREAMS,
    PADDING,
    VERSION,
    WINDOW,
    Decoder,
    Frame,
    FrameType,
    encode,
    find_greeting,
    greeting,
)
from lamella.model.errors import (
    Conflict,
    Corrupt,
    DeadlineExceeded,
    Forbidden,
    Internal,
    Invalid,
    LamellaError,
    NoRoom,
    NotFound,
    Unavailable,
    Unsupported,
)

_CREDIT = struct.Struct("<I")
_CHUNK = 64 << 10
_GRANT = WINDOW // 4
_LARGEST_CREDIT = 1 << 40
_LARGEST_STALE = 4 << 20
_LARGEST_REQUEST = 3 << 20
_PIECE = 32 << 10
_RESYNC_AFTER = 2.0
_FLUSH = 0.5

_GUEST_ERRORS: dict[str, type[LamellaError]] = {
    error.code: error
    for error in (Conflict, Forbidden, Internal, Invalid, NoRoom, NotFound, Unavailable, Unsupported, DeadlineExceeded)
}


class Stream:
    """One request and everything that belongs to it. Not more than one task reads and one writes."""

    def __init__(self, channel: "Channel", id: int) -> None:
        self.id = id
        self._channel = channel
        self._frames: deque[Frame] = deque()
        self._window = WINDOW
        self._owed = 0
        self._credit = WINDOW
        self._accepted = False
        self._result: Fields | None = None
        self._failure: LamellaError | None = None
        self._moved = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._letting_go = False

    async def receive(self) -> Frame | None:
        """The next DATA or ITEM frame; ``None`` when the stream has its result.

        :raise Unavailable, Corrupt: when the channel ended instead.
        """
        while not self._frames:
            if self._result is not None:
                return None
            if self._failure is not None:
                raise self._failure
            self._moved.clear()
            await self._moved.wait()
        frame = self._frames.popleft()
        self._owed += frame.cost
        if self._owed >= _GRANT and self._result is None and self._failure is None:
            self._window += self._owed
            granted, self._owed = self._owed, 0
            self._channel.post(Frame(self.id, FrameType.CREDIT, _CREDIT.pack(granted)))
        return frame

    async def result(self) -> Fields:
        """Wait for the stream's result; DATA and ITEM frames that nobody took are dropped.

        :raise LamellaError: what the guest answered, or that the channel ended.
        """
        while await self.receive() is not None:
            continue
        return self.outcome()

    def outcome(self) -> Fields:
        """The result of a stream that ended.

        :raise LamellaError: what the guest answered.
        """
        if self._result is None:
            raise self._failure or Internal("the stream has not ended")
        if Tag.ERROR in self._result:
            error = _GUEST_ERRORS.get(self._result.text(Tag.ERROR), Internal)
            raise error(self._result.text(Tag.MESSAGE) or "the guest refused without saying why")
        return self._result

    async def accepted(self) -> None:
        """Wait until the guest runs the request, or has answered it.

        :raise LamellaError: when it refused.
        """
        while not self._accepted and self._result is None and self._failure is None:
            self._moved.clear()
            await self._moved.wait()
        if self._failure is not None:
            raise self._failure
        if self._result is not None and Tag.ERROR in self._result:
            self.outcome()

    async def send_data(self, data: bytes) -> None:
        """Hand over input, as fast as the guest takes it.

        :raise Unavailable: when the stream or the channel has ended.
        """
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            cost = FRAME_COST + 1 + len(piece)
            while self._credit < cost and not self.ended:
                self._writable.clear()
                await self._writable.wait()
            self._check_open()
            self._credit -= cost
            await self._channel.send(Frame(self.id, FrameType.DATA, b"\0" + piece))

    async def send_end(self) -> None:
        """No more input."""
        self._check_open()
        await self._channel.send(Frame(self.id, FrameType.END))

    async def control(self, message: bytes) -> None:
        self._check_open()
        await self._channel.send(Frame(self.id, FrameType.CONTROL, message))

    def close(self) -> None:
        """Let go: the guest ends what belongs to the stream. Safe to call twice."""
        if self.ended or self._letting_go:
            return
        self._letting_go = True
        self._frames.clear()
        self._channel.post(Frame(self.id, FrameType.CLOSE))

    @property
    def ended(self) -> bool:
        return self._result is not None or self._failure is not None

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.ended or self._letting_go:
            raise Unavailable("the process in the guest has ended")

    # What the channel calls as frames arrive.

    def take(self, frame: Frame) -> None:
        """:raise Corrupt: when the guest overruns what it was granted."""
        if frame.type is FrameType.CREDIT:
            if len(frame.payload) != _CREDIT.size:
                raise Corrupt("the guest granted credit that cannot be read", hint="its agent is broken or hostile")
            self._accepted = True
            self._credit += _CREDIT.unpack(frame.payload)[0]
            if self._credit > _LARGEST_CREDIT:
                raise Corrupt("the guest granted more credit than there can be", hint="its agent is broken or hostile")
            self._writable.set()
        elif frame.type is FrameType.END:
            self._result = Fields(frame.payload)
            self._writable.set()
        else:
            self._window -= frame.cost
            if self._window < 0 or not frame.payload:
                raise Corrupt("the guest sent more than it was granted", hint="its agent is broken or hostile")
            if not self._letting_go:
                self._frames.append(frame)
        self._moved.set()

    def fail(self, error: LamellaError) -> None:
        if self._result is None:
            self._failure = error
        self._moved.set()
        self._writable.set()


class Channel:
    """The conversation. :meth:`open` greets, :meth:`close` ends it; the task that reads lives in between."""

    hello: Fields

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int, seal: int) -> None:
        self.version = version
        self.closed = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._seal = seal
        self._decoder = Decoder(seal)
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._failure: LamellaError | None = None
        self._greeted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timeout: float) -> Self:
        """Greet and wait for the answer; *writer* is closed when that fails.

        :raise DeadlineExceeded: when nothing answered in *timeout* seconds.
        :raise Unavailable: when the other end went away.
        :raise Corrupt: when what answers is no agent.
        """
        channel: Self | None = None
        try:
            async with asyncio.timeout(timeout):
                version, seal, rest = await _greet(reader, writer)
                channel = cls(reader, writer, version, seal)
                channel._task = asyncio.create_task(channel._run(rest), name="guest channel")
                await channel._greeted.wait()
                if channel._failure is not None:
                    raise channel._failure
                return channel
        except TimeoutError:
            await _abandon(channel, writer)
            raise DeadlineExceeded(
                f"the guest's agent did not answer in {timeout:g} s",
                hint="look at the guest's console for how far it came",
            ) from None
        except OSError as error:
            await _abandon(channel, writer)
            raise Unavailable(f"the guest's channel failed: {error}", hint="the guest may have ended") from error
        except BaseException:
            await _abandon(channel, writer)
            raise

    async def request(self, verb: Verb, message: bytes = b"") -> Stream:
        """Open a stream with a request.

        :raise Unavailable: when the channel is gone.
        :raise NoRoom: when there are too many streams.
        :raise Invalid: when the request is too large.
        """
        payload = body((Tag.VERB, int(verb))) + message
        if len(payload) > _LARGEST_REQUEST:
            raise Invalid("the command and its environment are too large", hint="pass large data as a file or as input")
        if self._failure is not None:
            raise self._failure
        if len(self._streams) >= MOST_STREAMS:
            raise NoRoom("the guest has too many open streams", hint="wait for some to end")
        self._last += 1
        stream = Stream(self, self._last)
        self._streams[stream.id] = stream
        for start in range(0, len(payload), LARGEST_PAYLOAD):
            more = MORE if start + LARGEST_PAYLOAD < len(payload) else 0
            self.post(Frame(stream.id, FrameType.REQUEST, payload[start : start + LARGEST_PAYLOAD], more))
        try:
            await self._drain()
        except BaseException:
            stream.close()
            raise
        return stream

    async def call(self, verb: Verb, message: bytes = b"", *, timeout: float = 30.0) -> Fields:
        """A request whose result is the answer.

        :raise DeadlineExceeded: when the guest does not answer in *timeout* seconds.
        :raise LamellaError: what the guest answered.
        """
        stream: Stream | None = None
        try:
            async with asyncio.timeout(timeout):
                stream = await self.request(verb, message)
                return await stream.result()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the guest did not answer to {verb.name.lower().replace('_', ' ')} in {timeout:g} s",
                hint="it may be starved of CPU or memory, or paused",
            ) from None
        finally:
            if stream is not None:
                stream.close()

    async def send(self, frame: Frame) -> None:
        """:raise Unavailable: when the channel is gone."""
        if self._failure is not None:
            raise self._failure
        self.post(frame)
        await self._drain()

    def post(self, frame: Frame) -> None:
        """Send without waiting: for what is small and bounded by what the guest sent or by the number of streams."""
        if self._failure is None:
            self._writer.write(encode(frame, self._seal))

    async def close(self) -> None:
        """End the conversation. Safe to call twice."""
        self._end(Unavailable("the guest's channel was closed", hint="ask again"))
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])
        try:
            async with asyncio.timeout(_FLUSH):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()  # the guest does not read what is left
        except OSError:
            pass

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            self._end(Unavailable(f"the guest's channel failed: {error}", hint="the guest may have ended"))
            raise self._failure or Unavailable("the guest's channel failed") from error

    async def _run(self, rest: bytes) -> None:
        try:
            data = rest
            while True:
                for frame in self._decoder.feed(data):
                    self._dispatch(frame)
                data = await self._reader.read(_CHUNK)
                if not data:
                    raise Unavailable(
                        "the guest's channel was closed by the other end", hint="the guest may have ended"
                    )
        except LamellaError as error:
            self._end(error)
        except OSError as error:
            self._end(Unavailable(f"the guest's channel failed: {error}", hint="the guest may have ended"))

    def _dispatch(self, frame: Frame) -> None:
        if frame.type is FrameType.HELLO:
            if self._greeted.is_set() or frame.stream:
                raise Corrupt("the guest introduced itself twice", hint="its agent is broken or hostile")
            self.hello = Fields(frame.payload)
            self._greeted.set()
            return
        stream = self._streams.get(frame.stream)
        if stream is None or not self._greeted.is_set():
            raise Corrupt("the guest spoke of a stream that there is not", hint="its agent is broken or hostile")
        stream.take(frame)
        if frame.type is FrameType.END:
            del self._streams[frame.stream]

    def _end(self, error: LamellaError) -> None:
        if self._failure is None:
            self._failure = error
        for stream in self._streams.values():
            stream.fail(self._failure)
        self._streams.clear()
        self._greeted.set()
        self.closed.set()
        self._writer.close()


async def _abandon(channel: Channel | None, writer: asyncio.StreamWriter) -> None:
    writer.close()
    if channel is not None:
        await channel.close()


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, int, bytes]:
    """Returns the agent's version, the seal, and the bytes after its answer.

    An agent that a former host left in the middle of a frame swallows the first greeting: after a while enough zeros follow to
    complete any frame, and a second one.
    """
    held = bytearray()
    skipped = 0
    nonce = _nonce()
    writer.write(greeting(nonce))
    again = asyncio.get_running_loop().time() + _RESYNC_AFTER
    tried_again = False
    while (found := find_greeting(held, nonce)) is None:
        if len(held) > 2 * _CHUNK:
            skipped += _CHUNK
            del held[:_CHUNK]
        if skipped > _LARGEST_STALE:
            raise Corrupt("the other end sends bytes but does not greet", hint="is this the guest agent's channel?")
        try:
            async with asyncio.timeout_at(None if tried_again else again):
                data = await reader.read(_CHUNK)
        except TimeoutError:
            again = asyncio.get_running_loop().time() + _RESYNC_AFTER
            if _waits(writer):
                continue  # the guest has not come as far as to open its port
            tried_again = True
            nonce = _nonce()
            writer.write(PADDING + greeting(nonce))
            continue
        if not data:
            raise Unavailable("the guest's channel was closed by the other end", hint="the guest may have ended")
        held += data
    version, end = found
    if version != VERSION:
        raise Unsupported(f"the guest's agent speaks version {version} of the protocol, this host {VERSION}")
    return version, nonce & 0xFFFFFFFF, bytes(held[end:])


def _waits(writer: asyncio.StreamWriter) -> bool:
    """Whether what was written lies in the socket, unread: QEMU takes nothing before the guest's port is open."""
    sock = writer.get_extra_info("socket")
    if sock is None:
        return False
    unread: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]  # SIOCOUTQ, unix(7)
    return unread > 0


def _nonce() -> int:
    return int.from_bytes(os.urandom(8)) | 1
