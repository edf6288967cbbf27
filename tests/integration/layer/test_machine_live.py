"""A real Debian as a full machine, from the command: UEFI with Secure Boot and a TPM, cloud-init, SSH, exec, devices, sizes, its screen.

One boot for all: it takes half a minute and more under emulation.
"""

import hashlib
import json
import os
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

NAME = "db"
PORT = 18022
GIB = 1 << 30


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def machine(
    layer: LayerUnderTest, debian_disk: Path, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    cloud = tmp_path_factory.mktemp("seed") / "cloud.yaml"
    cloud.write_text("#cloud-config\nwrite_files:\n- path: /etc/greeting\n  content: 'from user data: \"quoted\"'\n")
    layer.lamella("image", "import", str(debian_disk), "--name", "debian:12", timeout=300)
    layer.lamella("host", "set", "--overcommit", "cpu=16")
    layer.lamella(
        "run", "-d", "--isolation", "vm", "--name", NAME, "--cpu", "2", "--memory", "1GiB", "--disk", "8GiB",
        "--firmware", "uefi", "--secure-boot", "--tpm", "--user-data", str(cloud), "--ssh-key", f"{key}.pub",
        "-p", f"{PORT}:22", "debian:12",
    )  # fmt: skip
    layer.wait_phase(NAME, "running")
    until(lambda: layer.lamella("exec", NAME, "--", "true", check=False, timeout=200).returncode == 0, 300)
    yield NAME
    layer.lamella("rm", "--force", NAME)


def until(holds, seconds: float) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.5)


def inside(layer: LayerUnderTest, *command: str) -> str:
    return layer.out("exec", NAME, "--", *command, timeout=100)


def ssh(layer: LayerUnderTest, key: Path, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "nsenter", f"--net=/run/netns/{layer.netns}", "ssh", "-i", str(key), "-p", str(PORT), "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
            "-o", "ConnectTimeout=20", "-F", "none", "debian@127.0.0.1", command,
        ],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip


def test_cloud_init_does_what_it_was_told(layer: LayerUnderTest, machine: str) -> None:
    until(lambda: "status: done" in inside(layer, "cloud-init", "status"), 300)
    assert inside(layer, "cat", "/etc/greeting") == 'from user data: "quoted"'
    assert inside(layer, "hostname").strip() == NAME
    address = layer.show(NAME)["status"]["address"]
    assert address in inside(layer, "ip", "-4", "-o", "addr")
    # The root filesystem has grown to the disk that was asked for.
    assert int(inside(layer, "stat", "-f", "-c", "%b", "/")) * 4096 > 7 * GIB


def test_a_person_logs_in_through_the_published_port(layer: LayerUnderTest, machine: str, key: Path) -> None:
    found: list[subprocess.CompletedProcess[str]] = []

    def logged_in() -> bool:
        found.append(ssh(layer, key, "sudo -n id -u; hostname"))
        return found[-1].returncode == 0

    until(logged_in, 240)
    assert found[-1].stdout == f"0\n{NAME}\n"


def test_the_machine_has_a_tpm_and_started_by_secure_boot(layer: LayerUnderTest, machine: str) -> None:
    assert inside(layer, "cat", "/sys/class/tpm/tpm0/tpm_version_major").strip() == "2"
    value = inside(
        layer, "sh", "-c", "od -An -tu1 -j4 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    )
    assert value.strip() == "1"


def test_exec_has_exit_codes_streams_and_files(layer: LayerUnderTest, machine: str, tmp_path: Path) -> None:
    done = layer.lamella("exec", NAME, "--", "sh", "-c", "echo o; echo e >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"o\n", b"e\n")
    data = os.urandom(200_000)
    (tmp_path / "blob").write_bytes(data)
    layer.lamella("cp", str(tmp_path / "blob"), f"{NAME}:/root/blob")
    assert inside(layer, "sha256sum", "/root/blob").split()[0] == hashlib.sha256(data).hexdigest()


def test_it_is_suspended_and_goes_on(layer: LayerUnderTest, machine: str) -> None:
    inside(layer, "sh", "-c", "echo kept > /dev/shm/kept")
    boot = inside(layer, "cat", "/proc/sys/kernel/random/boot_id")
    layer.lamella("suspend", NAME)
    status = layer.show(NAME)["status"]
    assert status["phase"] == "suspended" and not status.get("pid")
    layer.kill()
    layer.start()
    layer.lamella("resume", NAME)
    until(lambda: layer.lamella("exec", NAME, "--", "true", check=False).returncode == 0, 90)
    assert inside(layer, "cat", "/dev/shm/kept", "/proc/sys/kernel/random/boot_id") == f"kept\n{boot}"
    assert layer.show(NAME)["status"]["epoch"] == 1


def test_disks_and_nics_come_and_go(layer: LayerUnderTest, machine: str) -> None:
    layer.lamella("device", "attach", NAME, "disk", "1GiB", "--name", "data")
    layer.lamella("device", "attach", NAME, "nic", "--name", "lan")
    until(lambda: str(GIB) in inside(layer, "lsblk", "-bdno", "SIZE"), 60)
    second = next(iter(layer.show(NAME)["status"]["ports"].values()))
    assert second
    until(lambda: inside(layer, "sh", "-c", "ls /sys/class/net").split().__len__() == 3, 60)
    assert set(layer.show(NAME)["status"]["devices"]) == {"data", "lan"}
    layer.lamella("device", "detach", NAME, "lan")
    refused = layer.lamella("device", "detach", NAME, "data", check=False)
    assert refused.returncode != 0 and b"--force" in refused.stderr
    layer.lamella("device", "detach", NAME, "data", "--force")
    until(lambda: str(GIB) not in inside(layer, "lsblk", "-bdno", "SIZE").split(), 60)
    until(lambda: layer.show(NAME)["status"]["retired"] == [], 60)
    assert layer.show(NAME)["status"]["devices"] == []


def memory(layer: LayerUnderTest) -> int:
    return int(inside(layer, "grep", "MemTotal", "/proc/meminfo").split()[1]) << 10


def test_its_memory_grows_and_shrinks(layer: LayerUnderTest, machine: str) -> None:
    layer.lamella("set", NAME, "--memory", "2GiB")
    until(lambda: memory(layer) > 1.7 * GIB, 90)
    layer.lamella("set", NAME, "--memory", "1GiB")
    until(lambda: memory(layer) < 1.3 * GIB, 120)
    for more in (("--memory", "900GiB"), ("--cpu", "900")):
        refused = layer.lamella("set", NAME, *more, check=False)
        assert refused.returncode != 0 and b"at most" in refused.stderr
    assert layer.show(NAME)["spec"]["memory"] == GIB


def test_processors_are_plugged_in_while_it_runs(layer: LayerUnderTest, machine: str) -> None:
    """By a BIOS, without a seed: our agent is on the disk. What was left alone is used again: QEMU must outlive that."""
    layer.lamella(
        "run",
        "-d",
        "--isolation",
        "vm",
        "--name",
        "grower",
        "--cpu",
        "1",
        "--memory",
        "512MiB",
        "--no-seed",
        "debian:12",
    )
    count = ("exec", "grower", "--", "nproc")
    until(lambda: layer.lamella(*count, check=False, timeout=200).stdout == b"1\n", 300)
    for cores in ("3", "1", "3"):
        layer.lamella("set", "grower", "--cpu", cores)
        until(lambda wanted=f"{cores}\n": layer.out(*count, timeout=100) == wanted, 60)
    layer.lamella("rm", "--force", "grower")


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and the raw, still filtered lines of a PNG (RFC 2083)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    position, data, size = 8, b"", (0, 0)
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            size = struct.unpack_from(">II", body)
        elif kind == b"IDAT":
            data += body
        position += length + 12
    return size[0], size[1], zlib.decompress(data)


def test_the_screen_shows_what_is_typed(layer: LayerUnderTest, machine: str, tmp_path: Path) -> None:
    def shot(name: str) -> tuple[int, int, bytes]:
        layer.lamella("screenshot", NAME, "-o", str(tmp_path / name))
        return pixels((tmp_path / name).read_bytes())

    until(lambda: "login" in inside(layer, "sh", "-c", "ps ax -o args | grep [a]getty | grep tty1; echo login"), 60)
    before = shot("before.png")
    layer.lamella("type", NAME, "nobody at home")
    until(lambda: shot("after.png") != before, 60)
    width, height, _ = shot("after.png")
    assert width >= 640 and height >= 400


def test_its_console_is_in_the_log_and_its_contract_is_read_from_it(layer: LayerUnderTest, machine: str) -> None:
    assert b"Linux" in layer.lamella("logs", NAME).stdout
    contract = json.loads(layer.out("contract", NAME, "-o", "json"))
    assert contract["observed"] and contract["level"].startswith("vm")
    assert any("emulated" in line for line in contract["not_promised"]) == (contract["accelerator"] == "tcg")


def test_the_same_machine_starts_again_and_keeps_its_disk_and_board(layer: LayerUnderTest, machine: str) -> None:
    board = layer.show(NAME)["status"]["board"]
    assert board.startswith("pc-q35-")
    inside(layer, "sh", "-c", "echo kept >/root/kept; sync")
    layer.kill()
    layer.start()
    assert inside(layer, "cat", "/root/kept") == "kept\n"
    layer.lamella("stop", NAME, timeout=200)
    seen = layer.wait_phase(NAME, "stopped", 120)
    assert seen["status"]["exit_code"] == 0
    layer.lamella("start", NAME)
    until(lambda: layer.lamella("exec", NAME, "--", "true", check=False, timeout=200).returncode == 0, 300)
    assert inside(layer, "cat", "/root/kept") == "kept\n"
    assert layer.show(NAME)["status"]["board"] == board
