"""``lamellad``: composes the parts by role. The room is joined first, before any thread; then the loop begins."""

import argparse
import asyncio
import logging
import os
import platform
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.daemon.home import find_home, furnish, lock
from lamella.host.compute.driver import Home
from lamella.model.errors import LamellaError
from lamella.version import __version__

if TYPE_CHECKING:
    from lamella.host.linux.room import Room

ROLES = ("all", "control", "host")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lamellad", description="The daemon of a Lamella layer.")
    parser.add_argument(
        "--role", choices=ROLES, default="all", help="what this daemon is: a whole layer, control, or one host"
    )
    parser.add_argument(
        "--home", help="directory of all state, sockets and marks (default: $LAMELLA_HOME, /var/lib/lamella)"
    )
    parser.add_argument("--name", default=platform.node() or "host", help="this host's name (default: the machine's)")
    parser.add_argument("--database", help="URL of the store (default: SQLite in the home)")
    parser.add_argument("--listen", metavar="ADDRESS:PORT", help="serve other machines there, with mutual TLS")
    parser.add_argument("--control", metavar="ADDRESS:PORT", help="for --role host: where control listens")
    parser.add_argument("--bundle", type=Path, help="certificate bundle of this daemon (from --issue)")
    parser.add_argument(
        "--underlay",
        metavar="ADDRESS",
        default="",
        help="IPv4 address of this host by which networks go on to other hosts",
    )
    parser.add_argument("--issue", metavar="NAME", help="make the bundle of the host NAME, print its path, and end")
    parser.add_argument("--purge", action="store_true", help="remove everything that bears this home's mark, and end")
    parser.add_argument(
        "--recover", metavar="PLACE", help="bring the layer back from a repository, and end (lamella recover)"
    )
    parser.add_argument("--key-file", metavar="FILE", help="of --recover: the repository's recovery key (- is stdin)")
    parser.add_argument("--ssh-key", type=Path, help="of --recover: the key for SFTP")
    parser.add_argument("--known-hosts", type=Path, help="of --recover: the server's keys")
    parser.add_argument("--region", default="", help="of --recover: the region of S3")
    parser.add_argument("--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"lamellad {__version__}")
    return parser


def main() -> int:
    """Run the daemon until SIGTERM or SIGINT; 0 then, 1 when it could not begin, 2 for bad usage."""
    args = parser().parse_args()
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("asyncio", "alembic", "httpcore", "httpx", "uvicorn", "qemu"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return run(args)
    except LamellaError as error:
        print(f"lamellad: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """What ``main`` does, with errors raised.

    :raise LamellaError: when the daemon cannot begin.
    """
    home = find_home(args.home)
    os.environ["LAMELLA_HOME"] = str(home.path)
    furnish(home)
    if args.issue:
        from lamella.daemon.joining import issue

        print(issue(home, args.issue))
        return 0
    held = lock(home)
    try:
        if args.purge:
            from lamella.daemon.purge import purge

            purge(home)
            return 0
        if args.recover:
            _recover(home, args)
            return 0
        room = None
        if args.role != "control":
            from lamella.host.linux.room import Room

            room = Room(home)
            room.ensure()
            room.join()
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(home, args, room))
    finally:
        os.close(held)


def _recover(home: Home, args: argparse.Namespace) -> None:
    from lamella.daemon.recover import read_key, run
    from lamella.model.backup import Credentials

    url = args.recover if "://" in args.recover else str(Path(args.recover).absolute())
    credentials = Credentials(
        access_key=os.environ.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
        region=args.region,
        ssh_key=args.ssh_key.read_text() if args.ssh_key else "",
        known_hosts=args.known_hosts.read_text() if args.known_hosts else "",
    )
    run(home, url, read_key(args.key_file), credentials, args.name)


async def serve(home: Home, args: argparse.Namespace, room: "Room | None") -> int:
    """Be the daemon until a signal says otherwise."""
    from lamella.daemon.roles import Role, compose

    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    role = Role(
        name=args.role,
        host_name=args.name,
        database=args.database or f"sqlite:///{home.state / 'lamella.db'}",
        listen=args.listen,
        control=args.control,
        bundle=args.bundle,
        underlay=args.underlay,
    )
    async with room.kept() if room else nullcontext(), compose(home, role):
        logging.getLogger("lamella.daemon").info("ready home=%s role=%s pid=%d", home.path, args.role, os.getpid())
        await stopping.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
