"""Writes numbered blocks to a disk, each with O_SYNC, one after the other around it, and notes what was acknowledged, and when.

Arguments: the disk, the log, the number of blocks, the first number. Ends when the log's directory has a file ``stop``, or when a write
fails; it says so then. Block ``n % blocks`` holds ``n``, 512 times.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path

BLOCK = 4096
RECORD = struct.Struct(">Qd")


def main() -> None:
    disk, log, blocks, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    stop = log.parent / "stop"
    page = mmap.mmap(-1, BLOCK)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    file = os.open(disk, os.O_RDWR | os.O_SYNC | os.O_DIRECT)
    while not stop.exists():
        page[:] = number.to_bytes(8, "big") * (BLOCK // 8)
        try:
            os.pwrite(file, page, (number % blocks) * BLOCK)
        except OSError as error:
            sys.stdout.write(f"failed {error}\n")
            sys.exit(1)
        os.write(out, RECORD.pack(number, time.time()))
        number += 1
    os.close(file)


if __name__ == "__main__":
    main()
