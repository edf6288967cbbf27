"""``lamella``: find the command that was asked for, run it, and turn what goes wrong into a sentence and an exit code."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from lamella.cli.parser import Command

OWN_FAILURE = 125  # of run and exec: the other codes are the command's own, as docker has it


def main() -> "NoReturn":
    """The process: :func:`obey`, and gone without taking the interpreter apart piece by piece (3 ms)."""
    code = 1
    try:
        code = obey(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141  # whoever read our output has gone: 128 + SIGPIPE, and nothing to say
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    os._exit(code)


def obey(words: "list[str]") -> int:
    """Do what the command line *words* says; returns the exit code."""
    failure = 1
    try:
        name, words = _command(words)
        if not name:
            return _overview(words)
        failure = OWN_FAILURE if name in _FOLLOWING else 1
        return run(name, words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _report(error, failure)


_FOLLOWING = ("run", "exec", "shell", "console")


def load(name: str) -> "Command":
    """How the command *name* is prepared and done."""
    from importlib import import_module

    from lamella.cli.commands import MODULES

    commands: dict[str, Command] = import_module(f"lamella.cli.{MODULES[name]}").COMMANDS
    return commands[name]


def run(name: str, words: "list[str]") -> int:
    """Do the command *name* with the arguments *words*."""
    from lamella.cli.commands import SUMMARIES
    from lamella.cli.parser import Parser

    prepare, act = load(name)
    parser = Parser(name, SUMMARIES[name], failure=OWN_FAILURE if name in _FOLLOWING else 2)
    prepare(parser)
    return act(parser.read(words))


def _command(words: "list[str]") -> "tuple[str, list[str]]":
    """The command's name and its arguments, with ``--host`` and ``--project`` moved behind it; no name: an overview."""
    from lamella.cli.commands import NOUNS, SUMMARIES

    moved: list[str] = []
    index = 0
    while index < len(words) and words[index].startswith("-"):
        word = words[index]
        if word in ("--host", "--project"):
            moved += words[index : index + 2]
            index += 2
        elif word.startswith(("--host=", "--project=")):
            moved.append(word)
            index += 1
        elif word == "--version":
            return "version", moved
        else:
            return "", words[index:]
    rest = words[index:]
    if not rest or rest[0] == "help":
        return "", []
    name = rest.pop(0)
    if name in NOUNS:
        if not rest or rest[0] in ("--help", "-h", "help"):
            return "", [name]
        name = f"{name} {rest.pop(0)}"
        if rest and f"{name} {rest[0]}" in SUMMARIES:
            name = f"{name} {rest.pop(0)}"
    if name not in SUMMARIES:
        return "", [name]
    if rest == ["-h"]:
        rest = ["--help"]
    return name, moved + rest


def _overview(words: "list[str]") -> int:
    from lamella.cli import commands

    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(commands.overview())
        return 0
    if words[0] in commands.NOUNS:
        sys.stdout.write(commands.overview(words[0]))
        return 0
    close = commands.nearest(words[0])
    hint = f"did you mean `lamella {close}`?" if close else "`lamella --help` lists the commands"
    sys.stderr.write(f"lamella: {words[0]!r} is no command\n  {hint}\n")
    return 2


def _report(error: Exception, failure: int) -> int:
    """Print what went wrong; an error that nobody designed is a defect, and shows where."""
    from lamella.model.errors import LamellaError

    if not isinstance(error, LamellaError):
        if not isinstance(error, OSError):
            raise error
        sys.stderr.write(f"lamella: {error.strerror or error}{f': {error.filename}' if error.filename else ''}\n")
        return failure
    from lamella.cli.output import clean

    sys.stderr.write(f"lamella: {clean(error.message)}\n")
    if error.hint:
        sys.stderr.write(f"  {clean(error.hint)}\n")
    return failure
