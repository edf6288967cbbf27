"""Signals by the names that people use."""

import signal

from lamella.model.errors import Invalid


def signal_number(text: str) -> int:
    """The number of ``TERM``, ``SIGTERM``, ``term``, ``15`` or ``RTMIN+3``, as Linux numbers them.

    :raise Invalid: when there is no such signal.
    """
    name = text.upper().removeprefix("SIG")
    if name.isdecimal():
        number = int(name) if len(name) < 4 else 0
        if 1 <= number <= 64:
            return number
    elif name.startswith(("RTMIN+", "RTMAX-")) and name[6:].isdecimal():
        number = signal.SIGRTMIN + int(name[6:]) if name.startswith("RTMIN") else signal.SIGRTMAX - int(name[6:])
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    elif f"SIG{name}" in signal.Signals.__members__:
        return int(signal.Signals[f"SIG{name}"])
    raise Invalid(f"{text!r} is not a signal", hint="name one such as TERM, KILL or HUP", field="signal")
