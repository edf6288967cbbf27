"""The asynchronous face, on asyncio."""
