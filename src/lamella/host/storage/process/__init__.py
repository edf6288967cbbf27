"""The storage process: one ``qemu-storage-daemon`` a layer, in which every volume that is attached somewhere is open, once.

daemon.py is what the rest of storage talks to.
"""
