"""Writes numbered blocks to a disk, one after the other around it, and notes how long the log of the power disk was when each was
acknowledged: a program of its own, so that nothing of the test waits with it.

Arguments: the disk, the notes, the power disk's log, the number of blocks. Ends when there is a file ``<notes>.stop``, or when a write
fails. Block ``n % blocks`` holds ``n``, 512 times; each is written with O_SYNC.
"""

import mmap
import os
import struct
import sys
from pathlib import Path

BLOCK = 4096
NOTE = struct.Struct(">QQ")


def main() -> None:
    disk, notes, log, blocks = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    stop = notes.with_suffix(".stop")
    page = mmap.mmap(-1, BLOCK)
    out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    file = os.open(disk, os.O_RDWR | os.O_SYNC | os.O_DIRECT)
    number = 1
    while not stop.exists():
        page[:] = number.to_bytes(8, "big") * (BLOCK // 8)
        os.pwrite(file, page, (number % blocks) * BLOCK)
        os.write(out, NOTE.pack(number, log.stat().st_size))
        number += 1
    os.close(file)


if __name__ == "__main__":
    main()
