"""Running a template's warm-up in its builder, through its host."""

from lamella.model.assignment import HostAgent
from lamella.model.errors import Conflict, DeadlineExceeded, Unavailable
from lamella.model.stream import ExecSpec, Exit
from lamella.model.template import TemplateSpec

# What is kept of the end of its output, in bytes, and for how long it may run, in seconds.
TAIL = 2048
LONGEST = 3600.0
_OUT_OF_TIME = 124


async def run_warmup(agent: HostAgent, builder: str, spec: TemplateSpec) -> None:
    """Run it to its end, as root.

    :raise Conflict: when it ends with another code than 0; the sentence has the end of what it said.
    :raise DeadlineExceeded: when it does not end. :raise Unavailable: when its host, or the builder, went away.
    """
    asked = ExecSpec(command=spec.warmup, environment=spec.environment, user="0", timeout=LONGEST)
    stream = await agent.exec(builder, asked)
    said = bytearray()
    try:
        while (frame := await stream.receive()) is not None:
            if isinstance(frame, Exit):
                _check(frame, bytes(said))
                return
            said += frame.data
            del said[:-TAIL]
    finally:
        await stream.close()
    raise Unavailable("the warm-up was cut off: its machine, or the way to it, went away")


def _check(end: Exit, said: bytes) -> None:
    if end.code == 0:
        return
    text = said.decode("utf-8", "replace").strip()
    tail = f"; the end of what it said:\n{text}" if text else ", and said nothing"
    if end.code == _OUT_OF_TIME:
        raise DeadlineExceeded(f"the warm-up did not end within {LONGEST:g} s{tail}")
    reason = f" ({end.reason})" if end.reason else ""
    raise Conflict(f"the warm-up ended with {end.code}{reason}{tail}", hint="change it: lamella template set --warmup")
