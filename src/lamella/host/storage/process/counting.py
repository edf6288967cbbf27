"""How much an open volume is used. QEMU 7.2 counts nothing for exports, but each volume's file is served by a thread of its own, and the
kernel counts what that thread reads from and writes to /dev/fuse (proc(5), ``io``: rchar, wchar, syscr). A write is a read for it.
"""

from pathlib import Path

from lamella.host.storage.blocks import Counted


def read(process: int, thread: int) -> Counted | None:
    """``None`` when there is no such thread, or the kernel does not count."""
    try:
        text = Path(f"/proc/{process}/task/{thread}/io").read_text()
    except OSError:
        return None
    lines = dict(line.split(": ") for line in text.splitlines())
    return Counted(bytes=int(lines["rchar"]) + int(lines["wchar"]), operations=int(lines["syscr"]))
