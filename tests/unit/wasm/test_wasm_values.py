"""What crosses to the C side, as bytes; where a module is found; what it is compiled for."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Limits, Machine, Rootfs, StoredArtifact
from lamella.host.compute.wasm import order as orders
from lamella.host.compute.wasm.driver import OVERHEAD, THREADS, group_limits
from lamella.host.compute.wasm.monitor import Kind, parse
from lamella.host.compute.wasm.source import source
from lamella.model.board import Directory
from lamella.model.errors import CannotRun, Invalid, Unavailable
from lamella.model.image import ArtifactKind, ImageConfig

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
MODULE, COMPONENT = b"\0asm\1\0\0\0", b"\0asm\x0d\0\1\0"


@given(st.lists(TEXT), st.dictionaries(TEXT, TEXT), st.booleans(), st.integers(1, 1 << 40), st.floats(0.001, 1e6))
def test_an_order_is_read_back_as_c_reads_it(
    arguments: list[str], environment: dict[str, str], read_only: bool, fuel: int, deadline: float
) -> None:
    order = orders.Order(
        user=1000,
        boot="boot",
        component=True,
        arguments=arguments,
        environment=environment,
        directories=[Directory(source="/host", target="/data", read_only=read_only)],
        fuel=fuel,
        memory=1 << 62,
        deadline=deadline,
    )
    data = orders.pack(order)
    user, flags, argc, envc, fuelled, memory, milliseconds = struct.unpack_from("=IIIIQQQ", data)
    texts = data[struct.calcsize("=IIIIQQQ") :].split(b"\0")
    assert (user, flags, argc, envc) == (1000, 5, len(arguments), len(environment))
    assert (fuelled, memory) == (fuel, 1 << 62) and milliseconds == max(1, round(deadline * 1000))
    pairs = [text.encode() for pair in environment.items() for text in pair]
    target = (b"r" if read_only else b"w") + b"/data"
    assert texts == [b"boot", *(text.encode() for text in arguments), *pairs, target, b""]


def test_no_bound_is_zero_and_a_zero_byte_is_refused() -> None:
    plain = orders.pack(orders.Order(user=1, boot=""))
    assert struct.unpack_from("=IIIIQQQ", plain) == (1, 0, 0, 0, 0, 0, 0)
    with pytest.raises(Invalid):
        orders.pack(orders.Order(user=1, boot="", arguments=["a\0b"]))


@given(st.binary(max_size=64))
def test_a_packet_is_understood_or_refused(data: bytes) -> None:
    try:
        packet = parse(data)
    except Unavailable:
        return
    assert data[:1] == packet.kind.value


def test_an_end_has_a_code_and_a_reason() -> None:
    packet = parse(b"X" + (137).to_bytes(4, "little") + b"killed")
    assert (packet.kind, packet.code, packet.text) == (Kind.ENDED, 137, "killed")


def test_a_worker_has_room_beside_its_module() -> None:
    assert group_limits(Limits(cpu=500, memory=1 << 20, pids=9)) == Limits(
        cpu=500, memory=(1 << 20) + OVERHEAD, pids=THREADS
    )
    assert group_limits(Limits()).memory is None


def test_the_module_of_an_image_is_found_with_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(MODULE)
    artifact = StoredArtifact(kind=ArtifactKind.MODULE, digest="sha256:1", path=path, size=8)
    plain = Rootfs(digest="sha256:2", layers=[], config=ImageConfig(), artifacts=[artifact])
    found = source(_machine(rootfs=plain, command=["a", "b"]))
    assert (found.arguments, found.identity, found.component) == (["module.wasm", "a", "b"], "sha256:1", False)
    named = Rootfs(digest="sha256:2", layers=[], config=ImageConfig(entrypoint=["app"]), artifacts=[artifact])
    assert source(_machine(rootfs=named, command=["app", "a"])).arguments == ["app", "a"]
    path.write_bytes(COMPONENT)
    assert source(_machine(rootfs=plain, command=[])).component
    for bad in (b"", b"\x7fELF", b"\0asm\2\0\0\0", MODULE[:7]):
        path.write_bytes(bad)
        with pytest.raises(CannotRun):
            source(_machine(rootfs=plain, command=[]))


def test_a_module_in_layers_is_the_uppermost_and_links_do_not_lead_out(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for layer, content in ((lower, MODULE), (upper, COMPONENT)):
        (layer / "bin").mkdir(parents=True)
        (layer / "bin" / "app.wasm").write_bytes(content)
    (tmp_path / "outside.wasm").write_bytes(MODULE)
    (upper / "out").symlink_to("../outside.wasm")
    rootfs = Rootfs(digest="sha256:2", layers=[upper, lower], config=ImageConfig(), os="wasi")
    for name, directory in (("/bin/app.wasm", "/"), ("app.wasm", "/bin"), ("bin/app.wasm", "/work")):
        found = source(_machine(rootfs=rootfs, command=[name, "x"], working_directory=directory))
        assert found.component and found.arguments == [name, "x"]
    for name in ("/out", "/bin", "/nothing"):
        with pytest.raises(CannotRun):
            source(_machine(rootfs=rootfs, command=[name]))
    with pytest.raises(CannotRun, match="no WebAssembly module"):
        source(_machine(rootfs=Rootfs(digest="sha256:2", layers=[], config=ImageConfig()), command=["/bin/sh"]))


def _machine(**more: Any) -> Machine:
    fields: dict[str, Any] = {
        "id": "inst_1",
        "name": "box",
        "project": "default",
        "environment": {},
        "working_directory": "/",
        "user": "",
        "hostname": "box",
        "terminal": False,
        "stdin": False,
        "limits": Limits(),
        "id_base": 1_000_000,
        "disk": None,
        "nic": None,
        "nameservers": [],
        "stop_signal": "SIGTERM",
    }
    return Machine(**{**fields, **more})
