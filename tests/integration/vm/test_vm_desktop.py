"""A screen is opened to one viewer, once: real handshakes with a real QEMU, by a viewer of ours and by Debian's own."""

import asyncio
import os
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from device_guest import NOBODY, BareQemu
from rfb_viewer import Denied, RfbViewer

from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.vm import certificates, screen
from lamella.host.compute.vm.desktop import Desktop, ScreenStream, cold_arguments
from lamella.model.board import Board, DesktopTicket, Graphics
from lamella.model.errors import Conflict, Unavailable, Unsupported
from lamella.model.stream import Exit, ProcessStream, Stdin, Stdout

BOARD = Board(spice=True)
FIRMWARE = (720, 400)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("screen")
    certificates.make_certificates(directory, "box", NOBODY)
    return directory


@pytest.fixture(scope="module")
def qemu(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareQemu]:
    """The firmware's screen is enough. The room of these certificates is an open directory."""
    fd = os.open(pki, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        arguments = ["-m", "32M", "-device", "VGA", *cold_arguments(BOARD, f"/proc/self/fd/{fd}")]
        qemu = BareQemu(tmp_path_factory.mktemp("qemu"), arguments, (fd,))
    finally:
        os.close(fd)
    yield qemu
    qemu.end()


@pytest.fixture
async def monitor(qemu: BareQemu) -> AsyncIterator[Monitor]:
    """Once the firmware has set its mode: until then the screen is QEMU's own of 640 by 480, and a viewer that asked for all of that
    would wait for lines that the firmware's does not have."""
    monitor = await Monitor.connect(qemu.monitor)
    for _ in range(600):
        if struct.unpack_from(">II", await screen.screenshot(monitor), 16) == FIRMWARE:
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the firmware never set its mode")
    yield monitor
    await monitor.close()


@pytest.fixture
def desktop(pki: Path) -> Desktop:
    return Desktop(BOARD, pki)


async def test_a_viewer_with_a_ticket_sees_the_screen(monitor: Monitor, desktop: Desktop) -> None:
    ticket = await desktop.ticket(monitor, "vnc")
    assert (ticket.kind, len(ticket.password)) == ("vnc", 8)
    stream = await desktop.connect(monitor, "vnc")
    viewer = RfbViewer(stream)
    width, height, name = await viewer.open(ticket)
    assert name.startswith("QEMU") and viewer.tls_version == "TLSv1.3"
    shot = await screen.screenshot(monitor)
    assert struct.unpack_from(">II", shot, 16) == (width, height)
    rectangles = await viewer.picture(width, height)
    assert sum(map(len, rectangles.values())) == 4 * width * height
    await stream.close()


async def test_a_wrong_password_is_refused_and_uses_the_ticket_up(monitor: Monitor, desktop: Desktop) -> None:
    ticket = await desktop.ticket(monitor, "vnc")
    stream = await desktop.connect(monitor, "vnc")
    with pytest.raises(Denied, match="Authentication failed"):
        await RfbViewer(stream).open(ticket, password="wrong")
    await stream.close()
    with pytest.raises(Conflict, match="no unused ticket"):
        await desktop.connect(monitor, "vnc")


async def test_a_ticket_lets_in_once(monitor: Monitor, desktop: Desktop, pki: Path) -> None:
    ticket = await desktop.ticket(monitor, "vnc")
    stream = await desktop.connect(monitor, "vnc")
    await RfbViewer(stream).open(ticket)
    with pytest.raises(Conflict, match="no unused ticket"):
        await desktop.connect(monitor, "vnc")
    await stream.close()
    # Whoever went around the tickets would find another password in force.
    again = await around(monitor)
    with pytest.raises(Denied):
        await RfbViewer(again).open(ticket)
    await again.close()


async def test_a_ticket_is_worth_nothing_when_its_time_is_up(monitor: Monitor, desktop: Desktop) -> None:
    ticket = await desktop.ticket(monitor, "vnc", life=1)
    await asyncio.sleep(2.1)
    with pytest.raises(Conflict, match="no unused ticket"):
        await desktop.connect(monitor, "vnc")
    stream = await around(monitor)  # QEMU knows it too
    with pytest.raises(Denied):
        await RfbViewer(stream).open(ticket)
    await stream.close()


async def test_a_newer_ticket_ends_the_older_and_not_who_is_in(monitor: Monitor, desktop: Desktop) -> None:
    first = await desktop.ticket(monitor, "vnc")
    inside = await desktop.connect(monitor, "vnc")
    viewer = RfbViewer(inside)
    width, height, _ = await viewer.open(first)
    second = await desktop.ticket(monitor, "vnc")
    third = await desktop.ticket(monitor, "vnc")
    stream = await desktop.connect(monitor, "vnc")
    with pytest.raises(Denied):
        await RfbViewer(stream).open(second)
    await stream.close()
    assert third.password != second.password
    assert await viewer.picture(width, height)
    await inside.close()


async def test_without_a_ticket_nobody_gets_in(monitor: Monitor, desktop: Desktop) -> None:
    for kind in ("vnc", "spice"):
        with pytest.raises(Conflict, match="no unused ticket"):
            await desktop.connect(monitor, kind)


async def test_another_machines_certificate_is_not_taken_for_this_ones(
    monitor: Monitor, desktop: Desktop, tmp_path: Path
) -> None:
    certificates.make_certificates(tmp_path / "other", "box", NOBODY)
    ticket = await desktop.ticket(monitor, "vnc")
    ticket.certificate = (tmp_path / "other" / certificates.AUTHORITY).read_text()
    stream = await desktop.connect(monitor, "vnc")
    with pytest.raises(ssl.SSLCertVerificationError):
        await RfbViewer(stream).open(ticket)
    await stream.close()


async def test_viewers_leave_nothing_open_in_qemu(qemu: BareQemu, monitor: Monitor, desktop: Desktop) -> None:
    async def visit() -> None:
        ticket = await desktop.ticket(monitor, "vnc")
        stream = await desktop.connect(monitor, "vnc")
        await RfbViewer(stream).open(ticket)
        await stream.close()

    # What QEMU opens for the first one alone is there by then; it sees a moment later that somebody has gone.
    await visit()
    await asyncio.sleep(0.5)
    before = qemu.files()
    for _ in range(2):
        await visit()
    async with asyncio.timeout(90):
        while qemu.files() > before:
            await asyncio.sleep(0.1)


async def test_the_key_is_its_own_users_alone(pki: Path) -> None:
    status = (pki / certificates.KEY).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (NOBODY, NOBODY, 0o400)
    assert sorted(path.name for path in pki.iterdir()) == sorted(
        [certificates.AUTHORITY, certificates.CERTIFICATE, certificates.KEY, certificates.GROUP]
    )


async def test_a_machine_without_a_screen_gives_no_tickets(monitor: Monitor, pki: Path) -> None:
    with pytest.raises(Unsupported, match="has no screen"):
        await Desktop(Board(graphics=Graphics.NONE), pki).ticket(monitor, "vnc")
    with pytest.raises(Unsupported, match="started without SPICE"):
        await Desktop(Board(), pki).ticket(monitor, "spice")
    with pytest.raises(Unsupported, match="no kind of screen"):
        await Desktop(Board(), pki).ticket(monitor, "rdp")
    assert cold_arguments(Board(graphics=Graphics.NONE)) == []


# --- SPICE


def spice_link(session: int, channel: int) -> bytes:
    """SpiceLinkHeader and SpiceLinkMess of spice-protocol, with no capabilities but the common ones."""
    message = struct.pack("<IBBIII", session, channel, 0, 1, 0, 18) + struct.pack("<I", 0b1001)
    return b"REDQ" + struct.pack("<III", 2, 2, len(message)) + message


async def test_spice_answers_a_viewers_main_channel_once(monitor: Monitor, desktop: Desktop) -> None:
    ticket = await desktop.ticket(monitor, "spice")
    assert (ticket.kind, ticket.certificate) == ("spice", "")
    stream = await desktop.connect(monitor, "spice")
    link = spice_link(0, 1)
    for part in (link[:3], link[3:18], link[18:]):  # as slowly as a network may bring it
        await stream.send(Stdin(part))
    frame = await stream.receive()
    assert isinstance(frame, Stdout) and frame.data.startswith(b"REDQ")
    _, _, _, _, error = struct.unpack_from("<4sIIII", frame.data)
    assert error == 0
    second = await desktop.connect(monitor, "spice")
    with pytest.raises(Unavailable, match="no ticket"):
        await second.send(Stdin(link))
    display = await desktop.connect(monitor, "spice")  # a viewer's other channels; QEMU takes them from who is in
    await display.send(Stdin(spice_link(12345, 2)))
    assert isinstance(await display.receive(), Stdout)
    for each in (stream, second, display):
        await each.close()


async def test_what_is_no_spice_is_not_let_through(monitor: Monitor, desktop: Desktop) -> None:
    await desktop.ticket(monitor, "spice")
    stream = await desktop.connect(monitor, "spice")
    with pytest.raises(Unavailable, match="no ticket"):
        await stream.send(Stdin(b"GET / HTTP/1.1\r\n\r\n" + bytes(32)))
    assert await stream.receive() == Exit(0)
    assert await stream.receive() is None
    await stream.close()


# --- a viewer that others built


async def test_debians_own_viewer_takes_a_picture(monitor: Monitor, desktop: Desktop, tmp_path: Path) -> None:
    ticket = await desktop.ticket(monitor, "vnc")
    picture = tmp_path / "picture.png"
    said = await capture(monitor, desktop, ticket, tmp_path, picture)
    assert picture.exists(), said
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert struct.unpack_from(">II", picture.read_bytes(), 16) == struct.unpack_from(
        ">II", await screen.screenshot(monitor), 16
    )


async def capture(monitor: Monitor, desktop: Desktop, ticket: DesktopTicket, scratch: Path, picture: Path) -> str:
    """gvnccapture through a port on the loopback, as the command line does it; it trusts the ticket's authority alone, in the home of
    the user's record, which is put there in a mount namespace of its own."""
    authority = scratch / "authority.pem"
    authority.write_text(ticket.certificate)
    trust = (
        'mount -t tmpfs none ~root && mkdir -p ~root/.pki/CA && cp "$1" ~root/.pki/CA/cacert.pem && shift && exec "$@"'
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = await desktop.connect(monitor, "vnc")
        sending = asyncio.create_task(to_screen(reader, stream))
        while isinstance(frame := await stream.receive(), Stdout):
            writer.write(frame.data)
        sending.cancel()
        writer.close()
        await stream.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        keyboard, terminal = os.openpty()  # it takes a password from a terminal only
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--propagation", "private", "bash", "-c", trust, "-", str(authority)),
            *("gvnccapture", f"localhost:{port - 5900}", str(picture)),
            stdin=terminal,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(90):
                said = await process.stdout.readuntil(b"Password: ")
                await asyncio.sleep(0.2)
                os.write(keyboard, ticket.password.encode() + b"\n")
                said += await process.stdout.read()
                await process.wait()
        finally:
            os.close(keyboard)
            os.close(terminal)
            if process.returncode is None:
                process.kill()
                await process.wait()
    return said.decode()


async def to_screen(reader: asyncio.StreamReader, stream: ProcessStream) -> None:
    while data := await reader.read(65536):
        await stream.send(Stdin(data))


async def around(monitor: Monitor) -> ScreenStream:
    """A connection that asks for no ticket."""
    import socket

    ours, theirs = socket.socketpair()
    async with monitor.named_fd(theirs.fileno()) as name:
        await monitor.execute("add_client", {"protocol": "vnc", "fdname": name})
    theirs.close()
    return ScreenStream(*await asyncio.open_connection(sock=ours))
