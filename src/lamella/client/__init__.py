"""The client's library: one protocol core without I/O, and two thin faces over it, ``aio`` and ``blocking``.

What the command needs to start quickly imports neither ``typing`` nor ``msgspec`` nor ``asyncio``: ``address``,
``request``, ``routes``, ``http1``, ``websocket``, ``msgpack``, ``lines``, ``problem`` and ``blocking.wire``.
``docs/library.md`` says why.
"""
