"""The storage process: ``qemu-storage-daemon`` under our supervision, in which every volume that is attached somewhere is open, once.

It is two processes of one program, so that what lies below a volume can change, or crash, without anybody above noticing:

- ``disks`` (disks.py) opens what the drivers' nodes say, and does what is done to chains: switch, merge, mirror, copy.
- ``doors`` (doors.py) reaches each of these over NBD, puts LUKS and limits on top, and serves the result as a file; a process more for
  each machine serves what is that one's alone over NBD.

daemon.py is what the rest of storage talks to.
"""
