"""An agent in a process of its own, called over mutual TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lamella.model.assignment import ImageRequest
from lamella.model.board import Input, Pointer
from lamella.model.errors import Corrupt, Forbidden, NotFound, Unauthenticated, Unavailable, Unsupported
from lamella.model.stream import ExecSpec, Exit, Signal, Stderr, Stdin, StdinEnd, Stdout
from lamella.wire.agent import RemoteAgent
from lamella.wire.certificates import Authority

MEBIBYTE = 1 << 20


@pytest.fixture
async def party(start):
    return await start("agent", "alpha")


@pytest.fixture
async def agent(party, authority: Authority) -> AsyncIterator[RemoteAgent]:
    remote = RemoteAgent(party.address, authority.issue("control", "main"), name="alpha")
    yield remote
    await remote.close()


async def counts(agent: RemoteAgent) -> dict[str, int]:
    return {mechanism.name: int(mechanism.value) for mechanism in await agent.mechanisms("i")}


async def eventually(agent: RemoteAgent, counted: str) -> None:
    for _ in range(4500):
        if counted in await counts(agent):
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{counted}: that never happened")


async def test_calls_carry_arguments_and_answers(agent: RemoteAgent) -> None:
    await agent.wake(77)
    assert (await counts(agent))["woken"] == 77
    assert (await agent.facts()).cpu == 2000
    assert await agent.collect_images({"a", "b"}) == 2
    assert (await agent.usage(["inst_x"]))["inst_x"].memory == 6
    await agent.make_directory("i", "/d", mode=0o700, uid=1, gid=2)
    assert (await agent.stat("i", "/d")).size == 0o703
    assert [info.path for info in await agent.list_directory("i", "/")] == ["/d"]
    await agent.kill("i", 9)


async def test_errors_come_back_as_themselves(agent: RemoteAgent) -> None:
    with pytest.raises(NotFound) as caught:
        await agent.stat("i", "/nothing")
    assert (caught.value.message, caught.value.field) == ("there is nothing at /nothing", "path")
    with pytest.raises(Unsupported):
        await agent.kill("i", 65)
    with pytest.raises(NotFound, match="look again"):
        await agent.exec("inst_none", ExecSpec(command=["true"]))


async def test_logs_and_images_are_streams(agent: RemoteAgent) -> None:
    since = datetime(2026, 5, 1, tzinfo=UTC)
    entries = [entry async for entry in agent.logs("i", follow=False, tail=5, since=since)]
    assert [entry.data for entry in entries] == [b"%d\n" % number for number in range(5)]
    assert {entry.at for entry in entries} == {since}
    progress = [line async for line in agent.image(ImageRequest(verb="pull", source="docker://x"))]
    assert progress[0].step == "pull"
    assert progress[1].result is not None and progress[1].result.digest == "docker://x"


async def test_a_reader_who_leaves_ends_the_stream_at_the_other_side(agent: RemoteAgent) -> None:
    logs = agent.logs("i", follow=True, tail=None, since=None)
    assert (await anext(logs)).data == b"0\n"
    await logs.aclose()
    await eventually(agent, "logs ended")


async def test_a_process_is_spoken_with(agent: RemoteAgent) -> None:
    process = await agent.exec("i", ExecSpec(command=["cat"]))
    await process.send(Stdin(b"\x00\xff hello"))
    assert await process.receive() == Stdout(b"\x00\xff hello")
    await process.send(StdinEnd())
    assert await process.receive() == Exit(0)
    assert await process.receive() is None
    await process.close()
    process = await agent.attach("i", start=False)
    assert await process.receive() == Stderr(b"here")
    await process.send(Signal(15))
    assert await process.receive() == Exit(143)
    await process.close()


async def test_a_machine_is_reset_seen_and_typed_at(agent: RemoteAgent) -> None:
    await agent.reset("i")
    asked = Input(text="root\n", keys=[["ctrl", "alt", "delete"]], pointer=[Pointer(x=0.5, y=1, buttons=["left"])])
    await agent.input("i", asked)
    assert set(await counts(agent)) == {"reset", "root\n|[['ctrl', 'alt', 'delete']]|[(0.5, 1.0, ['left'])]"}
    assert len(await agent.screenshot("i")) == 4 + 4 * MEBIBYTE
    with pytest.raises(Unsupported, match="no screen") as refused:
        await agent.screenshot("box")
    assert refused.value.hint == "take a vm"


async def test_a_viewer_gets_a_ticket_and_a_connection(agent: RemoteAgent) -> None:
    ticket = await agent.desktop("i", "spice")
    assert (ticket.kind, ticket.password) == ("spice", "for i")
    screen = await agent.screen("i", "vnc")
    await screen.send(Stdin(b"RFB 003.008\n"))
    assert await screen.receive() == Stdout(b"RFB 003.008\n")
    await screen.close()
    await eventually(agent, "closed")


async def test_memory_and_disks_pass_in_bounded_memory(agent: RemoteAgent, party) -> None:
    before = party.peak_memory()
    size = 0
    async for chunk in agent.dump("i", crash=False):
        size += len(chunk)
    assert size == 64 * MEBIBYTE
    assert party.peak_memory() - before < 48 * MEBIBYTE
    with pytest.raises(NotFound, match="never crashed"):
        await anext(aiter(agent.dump("i", crash=True)))
    left = agent.dump("i", crash=False)
    await anext(aiter(left))
    await left.aclose()
    await eventually(agent, "dumps ended")
    assert [part async for part in agent.export_image("sha256:a", "vmdk")] == [b"sha256:a as vmdk"]
    with pytest.raises(Corrupt, match="the disk lies"):
        async for _ in agent.export_image("sha256:a", "vdi"):
            pass


async def test_whoever_lets_go_of_a_process_closes_it(agent: RemoteAgent) -> None:
    process = await agent.exec("i", ExecSpec(command=["hang"]))
    assert await process.receive() == Stderr(b"here")
    await process.close()
    await eventually(agent, "closed")


async def test_a_slow_reader_holds_the_writer_back(agent: RemoteAgent, party) -> None:
    before = party.peak_memory()
    process = await agent.exec("i", ExecSpec(command=["flood"]))
    assert isinstance(await process.receive(), Stdout)
    await asyncio.sleep(1)
    held = (await counts(agent))["flood"]
    assert held < 16 * MEBIBYTE, "the process wrote on though nobody read"
    assert party.peak_memory() - before < 24 * MEBIBYTE
    total = 65536
    while isinstance(frame := await process.receive(), Stdout):
        total += len(frame.data)
    assert (frame, total) == (Exit(0), 64 * MEBIBYTE)
    assert party.peak_memory() - before < 24 * MEBIBYTE
    await process.close()


async def test_a_process_that_does_not_read_holds_the_sender_back(agent: RemoteAgent) -> None:
    process = await agent.exec("i", ExecSpec(command=["sink"]))
    sent = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            while sent < 64 * MEBIBYTE:
                await process.send(Stdin(b"x" * 65536))
                sent += 65536
    assert sent < 24 * MEBIBYTE
    await process.close()


async def test_large_files_pass_in_bounded_memory(agent: RemoteAgent, party) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"w" * MEBIBYTE

    before = party.peak_memory()
    await agent.write_file("i", "/big", chunks(), mode=0o644, uid=0, gid=0)
    assert (await agent.stat("i", "/big")).size == 64 * MEBIBYTE
    assert party.peak_memory() - before < 32 * MEBIBYTE
    size = 0
    async for chunk in agent.read_file("i", "/big"):
        size += len(chunk)
    assert size == 64 * MEBIBYTE
    assert party.peak_memory() - before < 48 * MEBIBYTE


async def test_a_refused_upload_says_why_at_once(agent: RemoteAgent) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"w" * 65536

    with pytest.raises(Unsupported, match="no file may be written"):
        async with asyncio.timeout(90):
            await agent.write_file("i", "/refused", endless(), mode=0o644, uid=0, gid=0)


async def test_half_an_upload_is_no_file(agent: RemoteAgent) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise Corrupt("the source broke")

    with pytest.raises(Corrupt, match="the source broke"):
        await agent.write_file("i", "/half", broken(), mode=0o644, uid=0, gid=0)
    await eventually(agent, "broken uploads")
    with pytest.raises(NotFound):
        await agent.stat("i", "/half")


async def test_an_error_after_the_first_bytes_is_not_an_end(agent: RemoteAgent) -> None:
    with pytest.raises(Corrupt, match="the disk lies"):
        async for _ in agent.read_file("i", "/corrupt"):
            pass


async def test_a_party_that_dies_is_unavailable(agent: RemoteAgent, party) -> None:
    process = await agent.exec("i", ExecSpec(command=["hang"]))
    logs = agent.logs("i", follow=True, tail=1, since=None)
    await anext(logs)
    assert await process.receive() == Stderr(b"here")
    party.process.kill()
    await party.process.wait()
    with pytest.raises(Unavailable):
        await anext(logs)
    assert await process.receive() is None
    with pytest.raises(Unavailable):
        await process.send(Stdin(b"x"))
    with pytest.raises(Unavailable):
        await agent.facts()
    with pytest.raises(Unavailable):
        await agent.exec("i", ExecSpec(command=["cat"]))
    await process.close()


async def test_a_party_of_another_layer_is_not_trusted(party, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other")
    stranger = RemoteAgent(party.address, other.issue("control", "main"), name="alpha")
    with pytest.raises(Unauthenticated, match="do not trust"):
        await stranger.facts()


@pytest.mark.parametrize("certificate", ["of another layer", "none"])
async def test_whoever_has_no_certificate_of_ours_gets_no_answer(
    party, authority: Authority, tmp_path: Path, certificate: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority.issue("host", "x").authority)
    if certificate != "none":
        bundle = Authority.open(tmp_path / "other").issue("control", "main")
        pem = tmp_path / "other.pem"
        pem.write_text(bundle.key + bundle.certificate)
        context.load_cert_chain(pem)
    # In TLS 1.3 the refusal reaches a client only after its own handshake is done.
    reader, writer = await asyncio.open_connection("127.0.0.1", party.port, ssl=context, server_hostname="alpha")
    answer = b""
    with contextlib.suppress(OSError):
        writer.write(b"POST /facts HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n\x80")
        answer = await reader.read(100)
    assert answer == b""
    writer.transport.abort()


async def test_only_control_may_ask_an_agent(party, authority: Authority) -> None:
    host = RemoteAgent(party.address, authority.issue("host", "beta"), name="alpha")
    with pytest.raises(Forbidden, match="only a control"):
        await host.facts()
    with pytest.raises(Forbidden, match="only a control"):
        await host.exec("i", ExecSpec(command=["sh"]))
    await host.close()


async def test_another_host_at_the_address_is_noticed(party, authority: Authority) -> None:
    agent = RemoteAgent(party.address, authority.issue("control", "main"), name="beta")
    with pytest.raises(Unauthenticated, match="host alpha answered"):
        await agent.facts()
