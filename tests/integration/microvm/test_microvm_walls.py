"""The jailer, the disks and the accelerator by themselves: no guest is booted here."""

import asyncio
import os
import resource
import subprocess
from pathlib import Path

import pytest
from microvm_lab import Lab

from lamella.host.compute.driver import Rootfs
from lamella.host.compute.microvm import disk
from lamella.host.compute.microvm.block_image import BlockImages
from lamella.host.compute.qemu import accelerator
from lamella.host.compute.qemu.launch import listening, sealed, tail
from lamella.host.linux import binaries, mounts
from lamella.host.linux.processes import environment
from lamella.host.storage.driver import VolumeHandle
from lamella.model.errors import Internal, Invalid
from lamella.model.image import ImageConfig
from lamella.model.storage import VolumeForm

pytestmark = pytest.mark.root

BUSYBOX = "/bin/busybox"


def jail(
    room: Path, *program: str, options: tuple[str, ...] = (), user: str = "1900000001"
) -> subprocess.CompletedProcess[str]:
    """Run busybox in a room. What it writes comes back, although it is nobody's child: the pipe is open until it ends."""
    room.mkdir(exist_ok=True)
    argv = [str(binaries.own("lamella-jailer")), "--room", str(room), "--user", user, "--bind", f"{BUSYBOX}:{BUSYBOX}"]
    return subprocess.run(
        [*argv, *options, "--", BUSYBOX, *program], capture_output=True, text=True, timeout=90, check=False
    )


def spoken(*argv: str) -> str:
    """What a program prints; it must end well."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=90).stdout


def test_a_jailed_program_has_nothing(tmp_path: Path) -> None:
    script = "id -u; id -G; echo $$; ls -a / /bin; hostname; ls /proc; echo x > /made"
    script += "; /bin/busybox mount -t tmpfs x /bin; ulimit -c; ulimit -n"
    with Path("/etc/passwd").open() as secret:
        os.set_inheritable(secret.fileno(), True)
        done = jail(tmp_path / "room", "sh", "-c", script, options=("--limit", "core=0", "--limit", "nofile=64"))
    assert done.returncode == 0 and done.stdout.strip().isdigit()
    said = done.stderr.splitlines()
    assert said[:3] == ["1900000001", "1900000001", "1"]
    assert said[3:11] == ["/:", ".", "..", "bin", "", "/bin:", ".", ".."] and said[11:13] == ["busybox", "room"]
    rest = "\n".join(said[13:])
    assert (
        "/proc: No such file" in rest and "/made: Read-only file system" in rest and "permission denied" in rest.lower()
    )
    assert said[-2:] == ["0", "64"]
    assert mounts.below(tmp_path) == []


def test_a_limit_is_never_raised(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = jail(tmp_path / "room", "sh", "-c", "ulimit -Hn", options=("--limit", f"nofile={hard + 1000}"))
    assert done.stderr.split() == [str(hard)]


@pytest.mark.parametrize(
    ("options", "user", "sentence"),
    [
        ((), "0", "not 0"),
        ((), "root", "not a number"),
        (("--bind", "/nowhere:/x"), "5", "cannot look at /nowhere"),
        (("--bind", "relative"), "5", "two parts"),
        (("--bind", "/etc:../x"), "5", "absolute"),
        (("--bind", "/etc:/x/../../y"), "5", "absolute"),
        (("--device", "/etc/passwd:/p"), "5", "another kind"),
        (("--bind", "/dev/null:/n"), "5", "another kind"),
        (("--cgroup", "/nowhere/cgroup.procs"), "5", "cannot join"),
        (("--limit", "everything=1"), "5", "unknown limit"),
        (("--keep", "77"), "5", "descriptor 77"),
        (("--what", "ever"), "5", "unknown option"),
    ],
)
def test_bad_usage_gets_a_sentence(tmp_path: Path, options: tuple[str, ...], user: str, sentence: str) -> None:
    done = jail(tmp_path / "room", "true", options=options, user=user)
    assert done.returncode in (1, 2) and sentence in done.stderr
    assert done.stdout == "" and mounts.below(tmp_path) == []


def test_what_qemu_writes_is_bounded() -> None:
    fd = sealed("test", 4096)
    os.write(fd, b"first words\n")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x" * 5000, 1)
        os.pwrite(fd, b"x", 4096)
    assert os.fstat(fd).st_size == 4096
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 1 << 30)
    os.pwrite(fd, b"\0" * 4096, 0)
    os.pwrite(fd, b"last words\n", 0)
    assert tail(fd) == "last words"
    os.close(fd)


def test_a_socket_may_lie_deep(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    with listening(deep / "monitor"):
        assert (deep / "monitor").is_socket()


async def test_a_block_image_is_built_once_and_collected(lab: Lab, tmp_path: Path) -> None:
    directory = tmp_path / "images-block"
    directory.mkdir()
    builders = [BlockImages(directory, environment(lab.home.mark)) for _ in range(2)]
    rootfs = Rootfs(digest="sha256:" + "a" * 64, layers=lab.layers, config=ImageConfig())
    found = await asyncio.gather(*(builder.ensure(rootfs) for builder in [*builders, *builders]))
    assert len(set(found)) == 1 and [path.name for path in directory.iterdir()] == [found[0].name]
    assert found[0].stat().st_mode & 0o777 == 0o400
    owned = spoken("dump.erofs", "--path=/owned", str(found[0]))
    assert "Uid: 1000   Gid: 1001  Access: 0750" in owned and "Xattr size: 0" not in owned
    written = found[0].stat().st_ino
    assert (await builders[0].ensure(rootfs)).stat().st_ino == written
    single = Rootfs(digest="sha256:" + "b" * 64, layers=lab.layers[1:], config=ImageConfig())
    alone = await builders[0].ensure(single)
    listed = spoken("dump.erofs", "--ls", "--path=/etc", str(alone))
    assert "gone" in listed and "never" not in listed
    half = directory / ".build-0000000000000000"
    half.mkdir()
    (half / "image").write_bytes(b"half")
    freed = await builders[0].collect({rootfs.digest})
    assert freed > 0 and [path.name for path in directory.iterdir()] == [found[0].name]


async def test_a_failing_build_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    directory = tmp_path / "images-block"
    directory.mkdir()
    rootfs = Rootfs(digest="sha256:" + "c" * 64, layers=lab.layers, config=ImageConfig())
    broken = {**environment(lab.home.mark), "LD_PRELOAD": "", "LD_LIBRARY_PATH": str(tmp_path)}
    (tmp_path / "liblz4.so.1").write_bytes(b"not a library")
    with pytest.raises(Internal, match=r"mkfs\.erofs"):
        await BlockImages(directory, broken).ensure(rootfs)
    assert list(directory.iterdir()) == []


async def test_a_disk_is_formatted_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    volume = VolumeHandle(id="vol_1", form=VolumeForm.BLOCK, path=path, size=256 << 20)
    # Half a filesystem of a daemon that died: no mark, so all of it goes.
    with path.open("r+b") as file:
        file.write(os.urandom(4 << 20))
    await disk.format_once(volume, environment("lamella-test"), tmp_path)
    assert disk.is_made(path) and path.stat().st_blocks * 512 < 4 << 20
    spoken("e2fsck", "-fn", str(path))
    before = path.read_bytes()
    await disk.format_once(volume, environment("lamella-test"), tmp_path)
    assert path.read_bytes() == before
    with pytest.raises(Invalid, match="block"):
        await disk.format_once(
            VolumeHandle(id="vol_2", form=VolumeForm.FILESYSTEM, path=tmp_path), environment("lamella-test"), tmp_path
        )


async def test_the_accelerator_is_proved_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = binaries.tool("qemu-system-x86_64")
    first = await accelerator.accelerator(lab.home, qemu, "1")
    assert first.name in ("kvm", "tcg") and first.reason
    assert first.name == "kvm" or first.tsc_khz > 500_000
    # The verdict is for one boot and one QEMU, and is asked for no more than once.
    assert await accelerator.accelerator(lab.home, Path("/nowhere"), "1") == first
    monkeypatch.setattr(accelerator, "DEVICE", lab.home.path / "no-kvm")
    second = await accelerator.accelerator(lab.home, qemu, "2")
    assert second.name == "tcg" and "there is no" in second.reason
