"""``logs``: what an instance has printed, standard output to ours and standard error to ours."""

import os
import sys
from binascii import Error, a2b_base64

from lamella.cli import when
from lamella.cli.document import parse
from lamella.cli.session import Session
from lamella.client import routes
from lamella.client.lines import LineReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.parser import Command, Options, Parser


def _options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.option("-f", "--follow", action="store_true", help="go on until it is removed, or you interrupt")
    parser.option("-n", "--tail", type=int, metavar="N", help="only the newest N lines")
    parser.option("--since", metavar="TIME", help="only what is younger: 10m, 2h, or 2026-11-21T10:00:00Z")
    parser.option("-t", "--timestamps", action="store_true", help="begin each line with its time")


def moment(text: "str | None") -> "str | None":
    """*text* as RFC 3339: a time, or how long ago.

    :raise Invalid: when it is neither.
    """
    if text is None:
        return None
    time = when.parse(text) if "-" in text else None
    if time is None:
        from datetime import UTC, datetime, timedelta

        from lamella.model.quantity import parse_duration

        time = datetime.now(UTC) - timedelta(seconds=parse_duration(text, field="since"))
    return time.isoformat()


def _logs(options: "Options") -> int:
    session = Session(options)
    request = routes.logs(
        session.project, options.name, follow=options.follow, tail=options.tail, since=moment(options.since)
    )
    reader = LineReader()
    sys.stdout.flush()
    fresh = True
    with session.wire.stream(request) as stream:
        for data in stream:
            # What came together goes out together: a write for each line makes a long log crawl.
            pieces: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
            for text in reader.feed(data):
                if not text:
                    continue
                entry = parse(text)
                output = pieces[2 if entry.text("stream") == "stderr" else 1]
                piece = _bytes(entry)
                if options.timestamps and fresh:
                    output += entry.text("at").encode() + b" "
                output += piece
                fresh = piece.endswith(b"\n")
            for descriptor, output in pieces.items():
                _write(descriptor, output)
    return 0


def _bytes(entry: "Document") -> bytes:
    try:
        return a2b_base64(entry.text("data"))
    except Error:
        return b""


def _write(descriptor: int, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


COMMANDS: "dict[str, Command]" = {"logs": (_options, _logs)}
