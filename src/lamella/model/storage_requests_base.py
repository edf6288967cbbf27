"""What every request to a host's storage is: a struct that says by its type which one."""

import msgspec


class StorageRequest(msgspec.Struct, kw_only=True, tag=True):
    """Subclasses say what; the result's type is in their docstring."""
