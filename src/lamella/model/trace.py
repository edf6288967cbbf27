"""What becomes of a packet, told step by step."""

import msgspec


class TraceStep(msgspec.Struct, kw_only=True):
    """At ``where`` (``port``, ``firewall out``, ``network``, ``uplink``, ``firewall in``) it ``passes`` or is dropped; ``because`` is a
    sentence."""

    where: str
    passes: bool
    because: str


class Trace(msgspec.Struct, kw_only=True):
    """The way of the first packet of a flow, and of nothing that was there before. A dropped one's last step says why."""

    source: str
    destination: str
    protocol: str
    port: int = 0
    passes: bool
    steps: list[TraceStep]
