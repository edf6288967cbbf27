"""Asking a program something: its standard output."""

import os

from lamella.host.linux.processes import environment, read_all, spawn
from lamella.model.errors import Unavailable


async def output(argv: list[str], mark: str, *, good: tuple[int, ...] = (0,)) -> str:
    """What *argv* prints, without white space around it. *good* are the exit codes of a success.

    :raise Unavailable: when it fails; what it said on standard error is in the error.
    """
    read_end, write_end = os.pipe()
    error_end, their_errors = os.pipe()
    try:
        child = spawn(argv, environment=environment(mark), files={1: write_end, 2: their_errors})
    except OSError as error:
        os.close(read_end)
        os.close(error_end)
        raise Unavailable(f"{argv[0]} cannot be run: {error.strerror}") from error
    finally:
        os.close(write_end)
        os.close(their_errors)
    try:
        text = (await read_all(read_end)).decode(errors="replace")
        said = (await read_all(error_end)).decode(errors="replace")
        code = await child.wait()
    finally:
        await child.end()
    if code not in good:
        raise Unavailable(f"{argv[0]} ended with {code}: {said.strip()[-200:]}")
    return text.strip()
