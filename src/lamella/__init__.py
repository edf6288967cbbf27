"""Lamella: one thin layer between machines and everything that runs on them.

``lamella.connect()`` and ``lamella.connect_sync()`` are the library's two doors; they are imported when they are asked for,
because the daemon and the command do not need them.
"""

from lamella.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.client.aio.layer import connect
    from lamella.client.blocking.layer import connect as connect_sync

__all__ = ["__version__", "connect", "connect_sync"]

_DOORS = {"connect": "lamella.client.aio.layer", "connect_sync": "lamella.client.blocking.layer"}


def __getattr__(name: str) -> object:
    if name in _DOORS:
        from importlib import import_module

        return import_module(_DOORS[name]).connect
    raise AttributeError(f"module 'lamella' has no attribute {name!r}")
