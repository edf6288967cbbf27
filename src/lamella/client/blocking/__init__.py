"""The synchronous face: plain sockets, no event loop."""
