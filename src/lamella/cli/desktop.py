"""``desktop``: a machine's screen in a viewer of this machine. The way there is the API's; with VNC there is TLS between
viewer and screen besides, with SPICE the password alone is encrypted to the screen."""

import os
import socket
import sys

from lamella.cli.output import clean, line
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.document import Document
    from lamella.cli.parser import Command, Options, Parser
    from lamella.client.blocking.channel import Channel

# TigerVNC's: the viewer that speaks VeNCrypt's X509Vnc, and takes the password from its environment.
_VNC_VIEWERS = ("xtigervncviewer", "vncviewer")
_SPICE_VIEWERS = ("remote-viewer",)
_LINGER = 5.0


def _options(parser: "Parser") -> None:
    parser.positional("name", help="the instance")
    parser.option("--spice", action="store_true", help="SPICE and not VNC (the machine was made with --spice)")
    parser.option("--vnc-viewer", action="store_true", help="start the viewer that is installed here, and end with it")
    parser.option("--port", type=int, default=0, metavar="N", help="of 127.0.0.1, for the viewer (default: a free one)")


def _desktop(options: "Options") -> int:
    kind = "spice" if options.spice else "vnc"
    program = _viewer(kind) if options.vnc_viewer else ""
    session = Session(options)
    listener = _listen(options.port)
    port = listener.getsockname()[1]
    ticket = session.ask(routes.desktop(session.project, options.name, kind=kind))

    def dial() -> "Channel":
        return session.wire.channel(routes.screen_stream(session.project, options.name, kind=kind))

    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="lamella-desktop-") as folder:
        authority = f"{folder}/ca.pem"
        if ticket.text("certificate"):
            _write(authority, ticket.text("certificate"))
        if program:
            return _show(program, folder, port, ticket, listener, dial)
        line(f"address   127.0.0.1:{port}" + (f"  (vncviewer 127.0.0.1::{port})" if kind == "vnc" else ""))
        line(f"password  {clean(ticket.text('password'))}")
        if ticket.text("certificate"):
            line(f"ca        {authority}")
        line(f"for one viewer, until {clean(ticket.text('expires'))}; it ends with the viewer, or Ctrl-C")
        sys.stdout.flush()
        from lamella.cli.bridge import Bridge

        with listener:
            Bridge(listener, dial, several=kind == "spice").run()
    return 0


def _show(program: str, folder: str, port: int, ticket: "Document", listener: socket.socket, dial: object) -> int:
    """Start the viewer, and carry its bytes until it has ended; its exit code."""
    import subprocess

    from lamella.cli.bridge import Bridge

    words, environment = command(program, folder, port, ticket)
    viewer = subprocess.Popen(words, env={**os.environ, **environment}, stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(viewer.pid)
    try:
        with listener:
            came = Bridge(listener, dial, several="remote-viewer" in program).run(ended)  # pyright: ignore[reportArgumentType]
        try:
            code = viewer.wait(_LINGER)
        except subprocess.TimeoutExpired:
            # The screen has gone, and it says so in a window of its own.
            code = viewer.wait()
    except BaseException:
        viewer.terminate()
        viewer.wait()
        raise
    finally:
        os.close(ended)
    if came:
        return 0 if code >= 0 else 128 - code
    from lamella.model.errors import Unavailable

    raise Unavailable(
        f"{program} ended ({code}) before it had asked for the screen",
        hint="start it by hand with what `lamella desktop` prints without --vnc-viewer",
    )


def command(program: str, folder: str, port: int, ticket: "Document") -> "tuple[list[str], dict[str, str]]":
    """How the viewer is started: its arguments, and what its environment has besides. The password is in neither's arguments."""
    if "remote-viewer" not in program:
        words = [
            program,
            "-SecurityTypes=X509Vnc",
            "-ReconnectOnError=0",
            f"-X509CA={folder}/ca.pem",
            f"127.0.0.1::{port}",
        ]
        return words, {"VNC_PASSWORD": ticket.text("password")}
    certificate = ticket.text("certificate").replace("\n", "\\n")
    settings = {
        "type": "spice",
        "host": "127.0.0.1",
        "tls-port" if certificate else "port": str(port),
        "password": ticket.text("password"),
        "ca": certificate,
        "delete-this-file": "1",
    }
    path = f"{folder}/screen.vv"
    _write(path, "[virt-viewer]\n" + "".join(f"{name}={value}\n" for name, value in settings.items() if value))
    return [program, path], {}


def _viewer(kind: str) -> str:
    """The path of an installed viewer for *kind*.

    :raise Unsupported: when there is none.
    """
    from shutil import which

    for name in _SPICE_VIEWERS if kind == "spice" else _VNC_VIEWERS:
        found = which(name)
        if found is not None:
            return found
    from lamella.model.errors import Unsupported

    package = "virt-viewer" if kind == "spice" else "tigervnc-viewer"
    raise Unsupported(
        f"no viewer for {kind.upper()} is installed here",
        hint=f"apt-get install {package}; or leave out --vnc-viewer and start a viewer of yours with what is printed then",
    )


def _listen(port: int) -> socket.socket:
    """A socket of this machine alone.

    :raise Conflict: when the port is taken.
    """
    try:
        return socket.create_server(("127.0.0.1", port), backlog=8)
    except (OSError, OverflowError) as error:
        from lamella.model.errors import Conflict

        raise Conflict(
            f"127.0.0.1:{port} cannot be listened on: {error}", hint="leave --port out for a free one", field="port"
        ) from error


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


COMMANDS: "dict[str, Command]" = {"desktop": (_options, _desktop)}
