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
        self.options_follow: Callable[[Options], bool] = lambda options: False
        self._section: argparse._ArgumentGroup | None = None  # pyright: ignore[reportPrivateUsage]
        self.option("--help", action="help", help="show this and exit")
        self.option("--host", metavar="URL", help="where the daemon is (unix:///PATH or https://HOST:PORT)")
        self.option("--project", default=os.environ.get("LAMELLA_PROJECT") or "default", help="(default: default)")

    def option(self, *names: str, **settings: object) -> None:
        """Add an option, as argparse's ``add_argument``."""
        action = (self._section or self).add_argument(*names, **settings)  # pyright: ignore[reportArgumentType]
        for name in names:
            self._values[name] = action.nargs != 0

    def section(self, title: str) -> None:
        """Options that are added from now on stand under *title* in the help."""
        self._section = self.add_argument_group(title)

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
        """Parse; with ``rest_after`` N, what follows the Nth argument without a dash is ``rest``, untouched.

        Where ``options_follow`` says so, our own options may stand at its beginning, too.
        """
        rest: list[str] = []
        if self.rest_after:
            cut = self._cut(arguments)
            arguments, rest = arguments[:cut], arguments[cut:]
        options = self.parse_args(arguments)
        if rest and self.options_follow(options):
            rest = self._more(rest, options)
        options.rest = rest[1:] if rest and rest[0] == "--" else rest
        return options

    def _more(self, rest: "list[str]", options: "Options") -> "list[str]":
        """Read the options that *rest* begins with; what is left of it."""
        end = 0
        while end < len(rest) and rest[end].partition("=")[0] in self._values:
            end += 2 if self._needs_next(rest[end]) else 1
        known = dict(vars(options))
        self.parse_args(rest[:end], options)
        # What has no dash was read before, and argparse has just put its default there.
        for action in self._get_positional_actions():
            setattr(options, action.dest, known[action.dest])
        return rest[end:]

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
