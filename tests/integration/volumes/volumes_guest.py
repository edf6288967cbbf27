"""A machine's stand-in: it alone has files of the storage process open, since whoever starts programs must not.

Each line on stdin is answered with one: ``write FILE OFFSET HEX``, ``read FILE OFFSET BYTES``, and ``number``, which writes blocks with
numbers to all files in turn until the next line and says how many.
"""

import os
import select
import struct
import sys

MIB = 1 << 20


def number(files: list[int]) -> int:
    turn = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        turn += 1
        for file in files:
            os.pwrite(file, struct.pack("<Q", turn) * 512, 4096 * (turn % 1024))
            os.pwrite(file, struct.pack("<Q", turn) * 512, 8 * MIB)
    return turn


def main() -> None:
    files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        match line.split():
            case ["write", file, offset, content]:
                os.pwrite(files[int(file)], bytes.fromhex(content), int(offset))
                print("written", flush=True)
            case ["read", file, offset, size]:
                print(os.pread(files[int(file)], int(size), int(offset)).hex(), flush=True)
            case ["number"]:
                print(number(files), flush=True)
            case _:
                pass


if __name__ == "__main__":
    main()
