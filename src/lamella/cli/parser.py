"""Arguments of one command. argparse, made for the command that was asked for and no other."""

import argparse
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    Options = argparse.Namespace
    Act = Callable[[Options], int]
    Prepare = Callable[["Parser"], None]
    Command = tuple[Prepare, Act]


def _formatter(prog: str) -> argparse.HelpFormatter:
    """A formatter that knows its width: argparse would import shutil to ask, once for every option."""
    try:
        columns = os.get_terminal_size().columns
    except (OSError, ValueError):
        columns = 80
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=max(40, min(columns, 120) - 2))


class Parser(argparse.ArgumentParser):
    """The parser of ``lamella NAME``. ``failure`` is the exit code of bad usage."""

    def __init__(self, name: str, summary: str, *, failure: int = 2) -> None:
        super().__init__(
            prog=f"lamella {name}", description=summary, formatter_class=_formatter, allow_abbrev=False, add_help=False
        )
        self._failure = failure
        self._values: dict[str, bool] = {}
        self.rest_after = 0
        self.option("--help", action="help", help="show this and exit")
        self.option("--host", metavar="URL", help="where the daemon is (unix:///PATH or https://HOST:PORT)")
        self.option("--project", default=os.environ.get("LAMELLA_PROJECT") or "default", help="(default: default)")

    def option(self, *names: str, **settings: object) -> None:
        """Add an option, as argparse's ``add_argument``."""
        action = self.add_argument(*names, **settings)  # pyright: ignore[reportArgumentType]
        for name in names:
            self._values[name] = action.nargs != 0

    def positional(self, name: str, **settings: object) -> None:
        """Add an argument without a dash."""
        self.add_argument(name, **settings)  # pyright: ignore[reportArgumentType]

    def output(self) -> None:
        """Add ``-o``."""
        self.option(
            "-o",
            "--output",
            choices=("table", "json", "yaml", "name"),
            default="table",
            help="table, json, yaml or name",
        )

    @property
    def options(self) -> "list[str]":
        """The options that it knows, for completion."""
        return list(self._values)

    def takes_value(self, name: str) -> bool:
        return self._values.get(name, False)

    def read(self, arguments: "list[str]") -> "Options":
        """Parse; with ``rest_after`` N, what follows the Nth argument without a dash is ``rest``, untouched."""
        rest: list[str] = []
        if self.rest_after:
            cut = self._cut(arguments)
            arguments, rest = arguments[:cut], arguments[cut:]
            if rest and rest[0] == "--":
                rest = rest[1:]
        options = self.parse_args(arguments)
        options.rest = rest
        return options

    def _cut(self, arguments: "list[str]") -> int:
        """Where the untouched rest begins."""
        wanted, index, plain = self.rest_after, 0, False
        while index < len(arguments):
            word = arguments[index]
            index += 1
            if word == "--" and not plain:
                plain = True
            elif plain or not word.startswith("-") or word == "-":
                wanted -= 1
                if not wanted:
                    return index
            elif self._needs_next(word):
                index += 1
        return len(arguments)

    def _needs_next(self, word: str) -> bool:
        """Whether the value of the option(s) *word* is the next argument."""
        if word.startswith("--"):
            return "=" not in word and self.takes_value(word)
        for index, letter in enumerate(word[1:], start=1):
            if self.takes_value(f"-{letter}"):
                return index == len(word) - 1
        return False

    def format_help(self) -> str:
        """With what ``rest_after`` leaves to the command."""
        if self.rest_after and self.usage is None:
            self.usage = self.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%") + " [--] [COMMAND ...]"
        return super().format_help()

    def error(self, message: str) -> "NoReturn":
        sys.stderr.write(f"lamella: {message}\n  `{self.prog} --help` says what it takes\n")
        raise SystemExit(self._failure)
