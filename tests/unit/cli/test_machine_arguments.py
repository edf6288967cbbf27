"""What run takes of machines, unikernels and modules; what is typed; where files go."""

import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_arguments import instance, read

from lamella.cli import contract, desktop, image, save, screen, source
from lamella.cli.document import Document
from lamella.control import fitting
from lamella.model.board import Board, Input
from lamella.model.errors import Invalid
from lamella.model.ids import check_image_name
from lamella.model.image import Artifact, ArtifactKind, ImageSpec, ImageStatus, Layer
from lamella.model.instance import Isolation
from lamella.model.resource import new_resource

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxhbWVsbGE anna@here"


def test_all_of_a_machine(tmp_path: Path) -> None:
    user_data, key, certificate = tmp_path / "cloud.yaml", tmp_path / "id.pub", tmp_path / "db.pem"
    user_data.write_text("#cloud-config\npackages: [nginx]\n")
    key.write_text(PUBLIC + "\n")
    certificate.write_text("-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n")
    made = instance(
        *("--isolation", "vm", "--disk", "8GiB", "--disk", "data=1GiB", "--disk", "2GiB", "--iso", "installer"),
        *("--firmware", "uefi", "--secure-boot", "--secure-boot-certificate", str(certificate), "--tpm"),
        *("--hardware", "generic", "--graphics", "qxl", "--spice", "--watchdog", "reset", "--on-crash", "dump"),
        *("--boot", "cdrom1,root,nic", "--usb", "1D6B:0002", "--user-data", str(user_data), "--ssh-key", str(key)),
        *("--nic", "back", "--nic", "default", "-p", "8080:80", "debian:12"),
    )
    assert (made.isolation, made.disk) == (Isolation.VM, 8 << 30)
    assert [(disk.name, disk.size) for disk in made.disks] == [("data", 1 << 30), ("disk1", 2 << 30)]
    assert [(cdrom.name, cdrom.image) for cdrom in made.cdroms] == [("cdrom1", "installer")]
    assert [(usb.name, usb.device) for usb in made.usb] == [("usb1", "1d6b:0002")]
    assert [nic.network for nic in made.nics] == ["default", "back", "default"]
    assert made.nics[0].publish[0].port == 80
    board = made.board
    assert (board.firmware, board.secure_boot, board.tpm, board.spice) == ("uefi", True, True, True)
    assert (board.hardware, board.graphics, board.watchdog, board.on_crash) == ("generic", "qxl", "reset", "dump")
    assert (board.boot, board.certificates) == (["cdrom1", "root", "nic"], [certificate.read_text()])
    assert (made.seed.user_data, made.seed.ssh_keys) == (user_data.read_text(), [PUBLIC])


def test_what_nobody_asked_for_is_not_sent() -> None:
    assert instance("debian:12").board == Board()
    for field in ("board", "disks", "cdroms", "usb", "seed", "directories", "fuel", "deadline", "disk"):
        from lamella.cli import spec

        assert field not in spec.instance(read("run", "debian:12"))  # type: ignore[arg-type]


def test_secure_boot_brings_uefi_and_refuses_bios(tmp_path: Path) -> None:
    assert instance("--isolation", "vm", "--secure-boot", "x").board.firmware == "uefi"
    with pytest.raises(Invalid):
        instance("--isolation", "vm", "--secure-boot", "--firmware", "bios", "x")
    der = tmp_path / "db.der"
    der.write_bytes(b"\x30\x82\x01\xff")
    with pytest.raises(Invalid, match="not text"):
        instance("--isolation", "vm", "--secure-boot-certificate", str(der), "x")


def test_an_image_may_be_left_out_with_a_cd_and_not_without() -> None:
    assert instance("--isolation", "vm", "--iso", "installer", "--name", "win").image == "scratch"
    with pytest.raises(Invalid, match="no image"):
        instance("--isolation", "vm", "--name", "win")


def test_the_seed_is_something_or_nothing(tmp_path: Path) -> None:
    assert not instance("--isolation", "vm", "--no-seed", "x").seed.enabled
    key = tmp_path / "id"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    with pytest.raises(Invalid, match="private key"):
        instance("--isolation", "vm", "--ssh-key", str(key), "x")
    key.write_text(PUBLIC)
    with pytest.raises(Invalid, match="contradicts"):
        instance("--isolation", "vm", "--no-seed", "--ssh-key", str(key), "x")
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(Invalid, match="larger"):
        instance("--isolation", "vm", "--user-data", str(tmp_path / "large"), "x")


def test_a_module_and_its_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = instance(
        *("--isolation", "wasm", "--dir", "data:/data", "--dir", "/srv:/srv:ro", "--fuel", "1000", "--deadline", "2s"),
        *("app.wasm", "--", "--dir", "arg"),
    )
    assert [(at.source, at.target, at.read_only) for at in made.directories] == [
        (str(tmp_path / "data"), "/data", False),
        ("/srv", "/srv", True),
    ]
    assert (made.fuel, made.deadline, made.command) == (1000, 2.0, ["--dir", "arg"])


def test_a_unikernels_options_may_follow_its_kernel() -> None:
    made = instance("--isolation", "unikernel", "kernel.elf", "--cmdline", "ip=10.0.0.2 quiet", "--memory=64MiB")
    assert (made.board.command_line, made.memory, made.command) == ("ip=10.0.0.2 quiet", 64 << 20, None)
    assert made.image == "kernel.elf"
    made = instance("--isolation", "unikernel", "k", "--cmdline", "a", "--", "--cmdline", "b")
    assert (made.board.command_line, made.command) == ("a", ["--cmdline", "b"])
    assert instance("--isolation", "unikernel", "k", "one", "--cmdline", "b").command == ["one", "--cmdline", "b"]
    assert instance("--isolation", "container", "k", "--cmdline", "b").command == ["--cmdline", "b"]


def test_confidential_technologies() -> None:
    made = instance("--isolation", "confidential", "--technology", "tdx", "x")
    assert made.board.confidential == "tdx"


def test_a_network_that_is_not_there_has_no_further_nic() -> None:
    with pytest.raises(Invalid, match="contradict"):
        instance("--isolation", "vm", "--network", "none", "--nic", "default", "x")


def test_what_is_typed() -> None:
    made = screen.hands(read("type", "db", r"root\n", "--key", "ctrl-alt-delete", "--key", "enter", "--click", "0.5,1"))  # type: ignore[arg-type]
    asked = msgspec.convert(made, Input)
    assert (asked.text, asked.keys) == ("root\n", [["ctrl", "alt", "delete"], ["ret"]])
    assert (asked.pointer[0].x, asked.pointer[0].y, asked.pointer[0].buttons) == (0.5, 1.0, ["left"])
    assert screen.hands(read("type", "db", "--", "-n")) == {"text": "-n"}  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        screen.hands(read("type", "db"))  # type: ignore[arg-type]


def test_how_viewers_are_started(tmp_path: Path) -> None:
    vnc = Document({"kind": "vnc", "password": "secret", "certificate": "PEM\n"})
    words, environment = desktop.command("/usr/bin/xtigervncviewer", "/t", 5901, vnc)
    assert words[-1] == "127.0.0.1::5901" and "-X509CA=/t/ca.pem" in words
    assert (environment, "secret" in " ".join(words)) == ({"VNC_PASSWORD": "secret"}, False)
    spice = Document({"kind": "spice", "password": "secret", "certificate": ""})
    words, environment = desktop.command("/usr/bin/remote-viewer", str(tmp_path), 5902, spice)
    assert (words, environment) == (["/usr/bin/remote-viewer", f"{tmp_path}/screen.vv"], {})
    told = (tmp_path / "screen.vv").read_text().splitlines()
    assert told[0] == "[virt-viewer]" and "port=5902" in told and "password=secret" in told
    assert not [line for line in told if line.startswith(("ca", "tls"))]


@given(st.text(max_size=60))
def test_any_file_name_gives_an_images_name(text: str) -> None:
    check_image_name(source.name_of(text))


def test_names_of_files() -> None:
    assert source.name_of("/srv/My App.wasm") == "my-app.wasm"
    assert source.name_of("kernel.elf") == "kernel.elf"
    assert source.name_of("disk_v1.2.qcow2") == "disk-v1-2.qcow2"
    assert source.name_of("./layout/") == "layout"
    assert source.name_of("...") == "file"


def _image(*kinds: str, layers: bool = False, os: str = "linux") -> Document:
    status = {"os": os, "artifacts": [{"kind": kind} for kind in kinds], "layers": [{}] if layers else []}
    return Document({"status": status})


def test_what_an_image_can_be_run_as() -> None:
    assert image.levels(_image(layers=True)) == ["container", "microvm"]
    assert image.levels(_image("disk", layers=True)) == ["container", "microvm", "vm", "confidential"]
    assert image.levels(_image("module")) == ["wasm"]
    assert image.levels(_image(layers=True, os="wasi")) == ["wasm"]
    assert image.levels(_image("kernel", "initrd")) == ["unikernel"]
    assert image.levels(_image("cdrom")) == ["vm", "confidential"]
    assert image.levels(_image()) == []


@given(st.sets(st.sampled_from(ArtifactKind)), st.booleans(), st.sampled_from(["linux", "wasi"]))
def test_the_command_and_control_agree_on_that(kinds: set[ArtifactKind], layers: bool, os: str) -> None:
    digest = "sha256:" + "a" * 64
    status = ImageStatus(
        os=os,
        layers=[Layer(diff_id=digest, size=1)] if layers else [],
        artifacts=[Artifact(kind=kind, digest=digest, size=1, stored=1) for kind in kinds],
    )
    made = new_resource("image", "x", ImageSpec(source="x"), status)
    told = image.levels(Document(msgspec.to_builtins(made)))
    assert not (layers or kinds) or told == [str(level) for level in fitting.levels_of(made)]


def test_levels_that_say_the_same_share_a_line() -> None:
    values = [("container", "the host's"), ("microvm", "its own"), ("vm", "its own")]
    assert contract.alike(values) == [["container", "the host's"], ["microvm, vm", "its own"]]


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "db.core"
    target.write_text("before")

    def broken():  # type: ignore[no-untyped-def]
        yield b"half"
        raise OSError("the line broke")

    with pytest.raises(OSError, match="the line broke"):
        save.save(broken(), str(target))
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["db.core"]
    assert save.save([b"whole"], str(target), mode=0o600) == 5
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"whole", 0o600)


def test_zeros_stay_holes_and_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    pieces = [b"a" + bytes((8 << 20) - 1), bytes(1 << 20), b"b" + bytes(1 << 20)]
    assert save.save(pieces, str(tmp_path / "link")) == sum(map(len, pieces))
    assert (tmp_path / "link").is_symlink()
    found = tmp_path / "real"
    assert found.read_bytes() == b"".join(pieces)
    assert found.stat().st_blocks * 512 < 1 << 20


@given(st.lists(st.binary(max_size=70000) | st.integers(0, 200000).map(bytes), max_size=6))
def test_what_is_saved_is_what_came(pieces: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        assert save.save(pieces, str(file)) == sum(map(len, pieces))
        assert file.read_bytes() == b"".join(pieces)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="is a directory"):
        save.check(str(tmp_path), "a picture", "lamella screenshot db -o db.png")
