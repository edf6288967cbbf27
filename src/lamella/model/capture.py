"""What is to be captured of a port's packets."""

from typing import Annotated

import msgspec
from msgspec import Meta

# pcap-filter(7).
Filter = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00]*$", description="As tcpdump has it; empty: all")]
# tcpdump's own largest.
SNAPSHOT = 262144


class CaptureSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Those that *filter* lets through, for ``duration`` seconds and ``packets`` at most (0: until nobody reads any more).
    ``snapshot`` is how many bytes of each are kept. Without a ``nic`` it is the first."""

    nic: Annotated[str, Meta(pattern=r"^([a-z][a-z0-9-]{0,30})?$(?!\n)", description="Left out: the first")] = ""
    filter: Filter = ""
    duration: Annotated[float, Meta(ge=0, le=86400, description="Seconds; 0: for as long as one reads")] = 0.0
    packets: Annotated[int, Meta(ge=0, le=1 << 31, description="0: all")] = 0
    snapshot: Annotated[int, Meta(ge=64, le=SNAPSHOT, description="Bytes of each packet that are kept")] = SNAPSHOT
