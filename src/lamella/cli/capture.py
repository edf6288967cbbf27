"""``network capture`` and ``network mirror``: what passes an instance's NIC, written down while it passes, or copied to another."""

import os
import sys

from lamella.cli.document import render
from lamella.cli.output import clean, line
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import network_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamella.cli.parser import Command, Options, Parser


def _options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.option(
        "-o", "--output", metavar="FILE", help="a capture file (default: standard output, when that is no terminal)"
    )
    parser.option("--filter", default="", metavar="EXPRESSION", help="as tcpdump has it: 'tcp port 80'")
    parser.option("--duration", metavar="TIME", help="10s, 5m (default: until Ctrl-C)")
    parser.option("--packets", type=int, metavar="N", help="end after so many")
    parser.option("--nic", metavar="NAME", help="as `lamella device ls` calls it (default: the first)")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def _capture(options: "Options") -> int:
    from lamella.cli import save
    from lamella.model.quantity import parse_duration

    save.check(options.output, "a capture", f"lamella network capture {options.name} -o {options.name}.pcap")
    session = Session(options)
    request = network_routes.capture(
        session.project,
        options.name,
        nic=options.nic,
        filter=options.filter,
        duration=None if options.duration is None else parse_duration(options.duration, field="duration"),
        packets=options.packets,
    )
    with (
        Progress(f"listening to {clean(options.name)}; Ctrl-C ends it", quiet=options.quiet) as progress,
        session.wire.stream(request) as pieces,
    ):
        return _write(pieces, options.output, progress)


def _write(pieces: "Iterable[bytes]", path: "str | None", progress: Progress) -> int:
    """Write *pieces* as they come; whoever interrupts has what came until then."""
    # What instances say to each other is its owner's business.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = 1 if path in (None, "-") else os.open(path or "", flags, 0o600)
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
            block = memoryview(piece)
            while block:
                block = block[os.write(descriptor, block) :]
            progress.update("", size, unit="bytes")
    except KeyboardInterrupt:
        sys.stderr.write("\n")
    except BrokenPipeError:
        # Whoever read it has seen enough.
        if descriptor != 1:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
    finally:
        if descriptor != 1:
            os.close(descriptor)
    return 0


def _mirror_options(parser: "Parser") -> None:
    parser.positional("name", help="the instance whose packets are copied")
    parser.option("--to", required=True, metavar="INSTANCE", help="who gets the copies; none ends it")
    parser.option("--nic", metavar="NAME", help="as `lamella device ls` calls it (default: the first)")


def _mirror(options: "Options") -> int:
    session = Session(options)
    body = render({"nic": options.nic, "to": None if options.to == "none" else options.to})
    session.ask(network_routes.mirror(session.project, options.name, body))
    line(clean(options.name))
    return 0


COMMANDS: "dict[str, Command]" = {
    "network capture": (_options, _capture),
    "network mirror": (_mirror_options, _mirror),
}
