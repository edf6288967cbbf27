"""A process in the guest, as the stream of frames that the rest of the layer knows."""

from lamella.host.compute.guest.channel import Stream
from lamella.host.compute.guest.fields import Fields, Tag, body
from lamella.host.compute.guest.frames import FrameType
from lamella.model.errors import Corrupt, LamellaError
from lamella.model.stream import Exit, FromProcess, Resize, Stderr, Stdin, StdinEnd, Stdout, ToProcess

_STDOUT = 1
_STDERR = 2


class GuestProcessStream:
    """A :class:`lamella.model.stream.ProcessStream` over a stream of the guest's channel."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._done = False

    async def send(self, frame: ToProcess) -> None:
        match frame:
            case Stdin():
                await self._stream.send_data(frame.data)
            case StdinEnd():
                await self._stream.send_end()
            case Resize():
                await self._stream.control(body((Tag.ROWS, frame.rows), (Tag.COLUMNS, frame.columns)))
            case _:
                await self._stream.control(body((Tag.SIGNAL, frame.number)))

    async def receive(self) -> FromProcess | None:
        if self._done:
            return None
        try:
            frame = await self._stream.receive()
            if frame is None:
                self._done = True
                return _exit(self._stream.outcome())
        except LamellaError:
            self._done = True
            return None
        number, data = frame.payload[0], frame.payload[1:]
        if frame.type is not FrameType.DATA or number not in (_STDOUT, _STDERR) or not data:
            await self.close()
            self._done = True
            return None
        return Stdout(data) if number == _STDOUT else Stderr(data)

    async def close(self) -> None:
        self._stream.close()


def _exit(result: Fields) -> Exit:
    code = result.number(Tag.EXIT_CODE, largest=255)
    if code is None:
        raise Corrupt("the guest did not say how the process ended", hint="its agent is broken or hostile")
    return Exit(code, result.text(Tag.REASON))
