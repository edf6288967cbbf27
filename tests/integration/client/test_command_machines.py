"""What the command does with machines, against the real API: screens, consoles, devices, files that become images."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_command_processes import Terminal

from conftest import Served

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxhbWVsbGE anna@here"


@pytest.fixture
def db(served: Served) -> Served:
    """A machine called ``db`` whose console is a program that says back every line."""
    script = "while read line; do echo heard $line; done"
    done = served.lamella(
        *("run", "-d", "-i", "--isolation", "vm", "--name", "db", "debian:12", "--", "sh", "-c", script)
    )
    assert done.returncode == 0, done.stderr
    return served


def shown(served: Served, name: str) -> "dict[str, object]":
    return json.loads(served.lamella("show", name, "-o", "json").stdout)["spec"]


def test_a_screenshot_is_a_file_and_never_a_terminals(db: Served, tmp_path: Path) -> None:
    assert db.lamella("screenshot", "db", "-o", str(tmp_path / "db.png")).returncode == 0
    assert (tmp_path / "db.png").read_bytes() == b"\x89PNG\r\n\x1a\ndb"
    assert db.lamella("screenshot", "db").stdout == b"\x89PNG\r\n\x1a\ndb"
    terminal = Terminal(db, "screenshot", "db")
    terminal.read_until(b"a picture is nothing for a terminal")
    terminal.read_until(b"lamella screenshot db -o db.png")
    assert terminal.end() == 1
    db.lamella("create", "--name", "box", "debian:12")
    refused = db.lamella("screenshot", "box", "-o", str(tmp_path / "box.png"))
    assert (refused.returncode, refused.stderr) == (
        1,
        b"lamella: a container has no screen and no buttons\n  --isolation vm has\n",
    )
    assert not (tmp_path / "box.png").exists()


def test_hands_and_the_reset_button(db: Served) -> None:
    assert db.lamella("type", "db", r"root\n", "--key", "ctrl-alt-del", "--click", "0.5,0.5").returncode == 0
    asked = db.layer.hands[0]
    assert (asked.text, asked.keys, asked.pointer[0].x) == ("root\n", [["ctrl", "alt", "delete"]], 0.5)
    assert db.lamella("type", "db").returncode == 1
    assert db.lamella("reset", "db").stdout == b"db\n"
    assert db.layer.resets == ["db"]


def test_memory_is_dumped_whole_or_not_at_all(db: Served, tmp_path: Path) -> None:
    core = tmp_path / "db.core"
    assert db.lamella("dump", "db", "-o", str(core)).returncode == 0
    assert core.read_bytes() == b"\x7fELF" + bytes(48 << 20) + b"end"
    assert stat.S_IMODE(core.stat().st_mode) == 0o600
    refused = db.lamella("dump", "db", "--crash", "-o", str(tmp_path / "crash.core"))
    assert refused.returncode == 1
    assert b"db never crashed" in refused.stderr
    assert [path.name for path in tmp_path.iterdir() if "core" in path.name] == ["db.core"]
    assert db.lamella("dump", "db", "-o", str(tmp_path)).returncode == 1


def test_an_export_that_breaks_off_leaves_what_was_there(served: Served, tmp_path: Path) -> None:
    target = tmp_path / "server.vmdk"
    assert served.lamella("image", "export", "debian:12", "-o", str(target)).returncode == 0
    assert target.read_bytes() == b"debian:12 as vmdk"
    assert served.lamella("image", "export", "debian:12", "--format", "raw", "-o", "-").stdout == b"debian:12 as raw"
    broken = served.lamella("image", "export", "debian:12", "--format", "vdi", "-o", str(target))
    assert broken.returncode == 1 and broken.stderr
    assert target.read_bytes() == b"debian:12 as vmdk"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["instances", "lamellad.sock", "server.vmdk"]


def test_the_console_is_a_terminal_that_can_be_left(db: Served) -> None:
    for _ in range(2):
        terminal = Terminal(db, "console", "db")
        terminal.read_until(b"Ctrl-] lets go")
        terminal.type(b"ping\r\n")
        terminal.read_until(b"heard ping")
        terminal.type(b"\x1d")
        terminal.read_until(b"left the console of db")
        assert terminal.end() == 0
        assert terminal.after == terminal.before
    assert b"db" in db.lamella("ps", "-q").stdout


def test_a_console_in_a_pipe_gives_back_what_is_said(db: Served) -> None:
    process = db.begin("console", "db", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"ping\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"heard ping\n"
    process.terminate()
    assert process.wait(90) == -15
    process.stdin.close()
    process.stdout.close()
    assert db.lamella("ps", "-q").stdout == b"db\n", "whoever visits sends no signals"


def begin_desktop(db: Served, *words: str) -> "tuple[subprocess.Popen[bytes], dict[str, str]]":
    process = db.begin("desktop", "db", *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told: dict[str, str] = {}
    while "for" not in told:
        word, rest = process.stdout.readline().decode().split(maxsplit=1)
        told[word] = rest.strip()
    return process, told


def test_a_viewer_is_let_in_once(db: Served) -> None:
    process, told = begin_desktop(db)
    assert told["password"] == "one-time"
    authority = Path(told["ca"])
    assert "BEGIN CERTIFICATE" in authority.read_text()
    assert stat.S_IMODE(authority.stat().st_mode) == 0o600
    port = int(told["address"].split()[0].rpartition(":")[2])
    data = os.urandom(4 << 20)
    with socket.create_connection(("127.0.0.1", port)) as viewer:
        sender = threading.Thread(target=viewer.sendall, args=(data,))
        sender.start()
        back = bytearray()
        while len(back) < len(data):
            piece = viewer.recv(1 << 16)
            assert piece
            back += piece
        sender.join()
        assert bytes(back) == data
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert process.wait(90) == 0
    assert process.stdout is not None
    process.stdout.close()
    assert not authority.exists()
    assert db.layer.viewers == ["vnc"]


def test_a_viewer_that_does_not_read_fills_nobodys_memory(db: Served) -> None:
    process, told = begin_desktop(db)
    port = int(told["address"].split()[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as viewer:
        viewer.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 << 20:
                sent += viewer.send(bytes(1 << 16))
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        assert sent < 64 << 20
        assert peak < 64 << 10, "KiB"
    assert process.wait(90) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_spice_has_several_connections_and_ends_with_the_first(db: Served) -> None:
    process, told = begin_desktop(db, "--spice")
    assert "ca" not in told, "nothing is said of TLS where there is none"
    port = int(told["address"].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as main:
        main.sendall(b"main")
        assert main.recv(10) == b"main"
        with socket.create_connection(("127.0.0.1", port)) as inputs:
            inputs.sendall(b"inputs")
            assert inputs.recv(10) == b"inputs"
        main.sendall(b"again")
        assert main.recv(10) == b"again"
    assert process.wait(90) == 0
    assert process.stdout is not None
    process.stdout.close()
    assert db.layer.viewers == ["spice", "spice"]


# Not a viewer that draws: one that connects as the command tells it to, and says what it was told.
VIEWER = """#!{python} -I
import os, socket, sys
address = sys.argv[-1].replace("::", ":").split(":")
authority = next(word for word in sys.argv if word.startswith("-X509CA=")).partition("=")[2]
viewer = socket.create_connection((address[0], int(address[1])))
viewer.sendall(b"RFB")
assert viewer.recv(3) == b"RFB"
open({told!r}, "w").write(os.environ["VNC_PASSWORD"] + " " + open(authority).readline())
"""


def test_an_installed_viewer_is_started_and_ended_with(db: Served, tmp_path: Path) -> None:
    programs, told = tmp_path / "bin", tmp_path / "told"
    programs.mkdir()
    viewer = programs / "xtigervncviewer"
    viewer.write_text(VIEWER.format(python=sys.executable, told=str(told)))
    viewer.chmod(0o755)
    done = db.lamella("desktop", "db", "--vnc-viewer", PATH=f"{programs}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert told.read_text() == "one-time -----BEGIN CERTIFICATE-----\n"
    viewer.write_text("#!/bin/sh\nexit 3\n")
    early = db.lamella("desktop", "db", "--vnc-viewer", PATH=f"{programs}:{os.environ['PATH']}")
    assert early.returncode == 1
    assert b"ended (3) before it had asked" in early.stderr
    absent = db.lamella("desktop", "db", "--spice", "--vnc-viewer", PATH=str(tmp_path))
    assert absent.returncode == 1
    assert b"apt-get install virt-viewer" in absent.stderr


def test_devices_come_and_go(db: Served) -> None:
    assert db.lamella("device", "attach", "db", "disk", "1GiB").stdout == b"disk1\n"
    assert db.lamella("device", "attach", "db", "disk", "2GiB", "--name", "data").stdout == b"data\n"
    assert db.lamella("device", "attach", "db", "nic").stdout == b"nic1\n"
    assert db.lamella("device", "attach", "db", "usb", "1d6b:0002").stdout == b"usb1\n"
    spec = shown(db, "db")
    assert [disk["size"] for disk in spec["disks"]] == [1 << 30, 2 << 30]  # type: ignore[attr-defined, index]
    listed = db.lamella("device", "ls", "db").stdout.decode().splitlines()
    assert [row.split()[:2] for row in listed] == [
        *(["NAME", "KIND"], ["root", "disk"], ["nic", "nic"], ["disk1", "disk"], ["data", "disk"]),
        *(["nic1", "nic"], ["usb1", "usb"]),
    ]
    assert "2GiB" in listed[4] and "on its way" in listed[4]
    refused = db.lamella("device", "detach", "db", "data")
    assert refused.returncode == 1
    assert b"what is on it goes with it" in refused.stderr and b"--force" in refused.stderr
    assert db.lamella("device", "detach", "db", "data", "--force").stdout == b"data\n"
    assert db.lamella("device", "detach", "db", "nic1").returncode == 0
    names = db.lamella("device", "ls", "db", "-o", "name").stdout.split()
    assert names == [b"root", b"nic", b"disk1", b"usb1"]
    for words in (["disk"], ["usb"], ["disk", "much"], ["cdrom"], ["usb", "keyboard"]):
        assert db.lamella("device", "attach", "db", *words).returncode == 1
    assert db.lamella("device", "detach", "db", "root", "--force").returncode == 1


def test_who_is_slower_plugs_in_beside_the_other(db: Served) -> None:
    db.layer.interfere = 2
    assert db.lamella("device", "attach", "db", "disk", "1GiB").stdout == b"disk1\n"
    db.layer.interfere = 99
    refused = db.lamella("device", "attach", "db", "disk", "1GiB")
    assert refused.returncode == 1
    assert b"changed since" in refused.stderr
    db.layer.interfere = 0
    assert len(shown(db, "db")["disks"]) == 1  # type: ignore[arg-type]


def test_a_machine_from_a_cd_alone(served: Served, tmp_path: Path) -> None:
    (tmp_path / "Installer 11.iso").write_bytes(b"CD001")
    done = served.lamella(
        *("create", "--isolation", "vm", "--firmware", "uefi", "--secure-boot", "--tpm", "--name", "win"),
        *("--iso", str(tmp_path / "Installer 11.iso"), "--disk", "20GiB"),
    )
    assert done.returncode == 0, done.stderr
    spec = shown(served, "win")
    assert (spec["image"], spec["disk"]) == ("scratch", 20 << 30)
    assert spec["cdroms"] == [{"name": "cdrom1", "image": "installer-11.iso"}]
    assert spec["board"]["firmware"] == "uefi" and spec["board"]["tpm"]  # type: ignore[index]
    asked = served.layer.brought[0]
    assert (asked.verb, asked.source, asked.name) == (
        *("import", str(tmp_path / "Installer 11.iso"), "installer-11.iso"),
    )


def test_a_file_is_imported_each_time_and_an_image_never(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.wasm").write_bytes(b"\0asm")
    (tmp_path / "debian:12").write_text("a file that is called like an image")
    words = ("create", "--isolation", "wasm", "app.wasm", "--", "arg")
    assert [served.lamella(*words).returncode for _ in range(2)] == [0, 0]
    assert [asked.name for asked in served.layer.brought] == ["app.wasm", "app.wasm"]
    assert served.lamella("create", "debian:12").returncode == 0
    assert len(served.layer.brought) == 2, "an image of that name is what was meant"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "app.wasm").write_bytes(b"\0asm")
    monkeypatch.chdir(tmp_path / "other")
    served.lamella("create", "--isolation", "wasm", "app.wasm")
    assert len(served.layer.brought) == 2, "an image that came from elsewhere keeps its name"
    served.lamella("create", "--isolation", "wasm", "./app.wasm")
    assert served.layer.brought[-1].source == str(tmp_path / "other" / "app.wasm")
    absent = served.lamella("create", "--isolation", "wasm", "./absent.wasm")
    assert absent.returncode == 1
    assert b"there is no file ./absent.wasm" in absent.stderr


def test_a_kernel_brings_its_initrd(served: Served, tmp_path: Path) -> None:
    for name in ("kernel.elf", "initrd.img"):
        (tmp_path / name).write_bytes(b"\x7fELF")
    kernel, initrd = str(tmp_path / "kernel.elf"), str(tmp_path / "initrd.img")
    words = ("create", "--name", "uni", "--isolation", "unikernel", kernel, "--cmdline", "ip=10.0.0.2")
    assert served.lamella(*words, "--initrd", initrd).returncode == 0
    assert (served.layer.brought[0].source, served.layer.brought[0].initrd) == (kernel, initrd)
    assert shown(served, "uni")["board"]["command_line"] == "ip=10.0.0.2"  # type: ignore[index]
    refused = served.lamella("create", "--isolation", "unikernel", "--initrd", initrd, "kernel.elf")
    assert refused.returncode == 1
    assert b"--initrd goes with a kernel's file" in refused.stderr
    assert served.lamella("image", "import", kernel, "--initrd", initrd, "-n", "k2").returncode == 0
    assert (served.layer.brought[-1].name, served.layer.brought[-1].initrd) == ("k2", initrd)


def test_keys_and_user_data_reach_the_seed(served: Served, tmp_path: Path) -> None:
    (tmp_path / "cloud.yaml").write_text("#cloud-config\n")
    (tmp_path / "id.pub").write_text(PUBLIC + "\n")
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    words = ("create", "--isolation", "vm", "--name", "db", "--user-data", str(tmp_path / "cloud.yaml"))
    assert served.lamella(*words, "--ssh-key", str(tmp_path / "id.pub"), "debian:12").returncode == 0
    assert shown(served, "db")["seed"] == {
        "enabled": True,
        "user_data": "#cloud-config\n",
        "ssh_keys": [PUBLIC],
    }
    private = served.lamella("create", "--isolation", "vm", "--ssh-key", str(tmp_path / "id"), "debian:12")
    assert private.returncode == 1
    assert f"give its public half, most often {tmp_path}/id.pub".encode() in private.stderr
    absent = served.lamella("create", "--isolation", "vm", "--user-data", "absent.yaml", "debian:12")
    assert (absent.returncode, absent.stderr) == (1, b"lamella: No such file or directory: absent.yaml\n")


def test_images_tell_what_they_can_be_run_as(served: Served, tmp_path: Path) -> None:
    for name in ("app.wasm", "kernel.elf", "server.qcow2"):
        (tmp_path / name).write_bytes(b"x")
        assert served.lamella("image", "import", str(tmp_path / name)).stdout.decode() == f"{name}\n"
    rows = served.lamella("image", "ls").stdout.decode()
    assert "container, microvm" in rows and "wasm" in rows and "unikernel" in rows and "vm, confidential" in rows
    page = served.lamella("image", "show", "server.qcow2").stdout.decode()
    assert "kind: disk" in page and "size: 1GiB" in page and "runs as: vm, confidential" in page
    assert served.lamella("image", "build", "debian:12", "--disk", "--with", "nginx").returncode == 0
    assert (served.layer.brought[-1].disk, served.layer.brought[-1].packages) == (True, ["nginx"])


def test_levels_side_by_side_and_what_is_missing(served: Served) -> None:
    page = served.lamella("contract", "--compare").stdout.decode()
    assert "microvm, confidential  its own" in page
    assert "not here" in page and "that it is fast" in page
    some = served.lamella("contract", "--compare", "container").stdout.decode()
    assert "the host's" in some and "its own" not in some
    assert served.lamella("contract", "--compare", "vm9").returncode == 1
    assert json.loads(served.lamella("contract", "--compare", "-o", "json").stdout)["rows"][0]["subject"] == "kernel"
    assert served.lamella("contract").returncode == 1
    why = served.lamella("explain", "--why-not", "confidential").stdout.decode()
    assert why.splitlines()[0] == "confidential cannot be had here."
    assert "NO   here  SEV-SNP  /dev/sev is not there" in why
    assert served.lamella("explain", "--why-not", "vm9").returncode == 1
    assert served.lamella("explain").returncode == 1


def test_a_desktop_that_is_broken_off_leaves_nothing(db: Served) -> None:
    process, told = begin_desktop(db)
    folder = Path(told["ca"]).parent
    assert folder.is_dir()
    process.send_signal(2)
    assert process.wait(90) == 130
    assert process.stdout is not None
    process.stdout.close()
    for _ in range(4500):
        if not folder.exists():
            return
        time.sleep(0.02)
    pytest.fail("its private files were left")
