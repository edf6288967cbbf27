"""What holds a container in: ids, capabilities, system calls, paths; and files that lead nowhere but inside."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from oci_lab import Lab, collect, run

from lamella.host.compute.oci.driver import OciDriver
from lamella.host.linux.binaries import own
from lamella.model.errors import LamellaError, NotFound
from lamella.model.files import FileType
from lamella.model.stream import ExecSpec

pytestmark = pytest.mark.root


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_root_inside_is_nobody_outside(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine(
        "sh", "-c", "echo mine > /tmp/file; chown ann /tmp/file; cat /proc/self/uid_map; ls -ln /etc/passwd"
    )
    code, output, _ = await run(driver, machine)
    assert code == 0
    assert output.split()[:3] == [b"0", str(machine.id_base).encode(), b"65536"]
    assert b" 0        0 " in output, "the image's files are root's inside"
    facts = (machine.disk.path / "upper" / "tmp" / "file").stat()
    assert (facts.st_uid, facts.st_gid) == (machine.id_base + 1000, machine.id_base)
    assert (lab.layers[1] / "etc" / "passwd").stat().st_uid == 0


async def test_two_containers_share_layers_and_no_ids(lab: Lab, driver: OciDriver) -> None:
    one, other = lab.machine("sleep", "1000"), lab.machine("sleep", "1000")
    for machine in (one, other):
        await driver.create(machine)
        await driver.start(machine.id)
    stream = await driver.exec(one.id, ExecSpec(command=["sh", "-c", "echo x > /hello"]))
    assert (await collect(stream))[0] == 0
    stream = await driver.exec(other.id, ExecSpec(command=["cat", "/hello"]))
    assert (await collect(stream))[1] == b"from the upper layer\n"
    links = [
        Path(f"/proc/{(await observed_pid(driver, m.id))}/ns/{ns}").readlink()
        for m in (one, other)
        for ns in ("user", "net")
    ]
    assert len(set(links)) == 4


async def observed_pid(driver: OciDriver, id: str) -> int:
    seen = await driver.observe(id)
    assert seen is not None
    assert seen.pid is not None
    return seen.pid


async def test_the_mechanisms_are_read_from_the_running_thing(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sleep", "1000")
    assert await driver.mechanisms(machine.id) == []
    await driver.create(machine)
    await driver.start(machine.id)
    found = {mechanism.name: mechanism for mechanism in await driver.mechanisms(machine.id)}
    for name in (
        "id range",
        *(f"{kind} namespace" for kind in ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")),
        "capabilities",
        "no new privileges",
        "seccomp",
        "root filesystem",
        "masked paths",
        "read-only paths",
        "read-only /sys",
        "limit.pids",
    ):
        assert found[name].in_force, found[name]
        assert found[name].evidence.startswith("/")
    assert not found["limit.memory"].in_force
    assert "sys_admin" not in found["capabilities"].value
    assert "/proc/keys" in found["masked paths"].value
    netns = await driver.netns(machine.id)
    pid = await observed_pid(driver, machine.id)
    assert netns.stat().st_ino == Path(f"/proc/{pid}/ns/net").stat().st_ino


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /proc/sys",
        "umount /proc/keys",
        "unshare -U true",
        "unshare -n true",
        "chroot /proc/1/root/../../ sh -c 'test -e /work'",
        "mknod /tmp/disk b 254 0",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "hostname other",
        "ip link add dummy0 type dummy",
        "cat /proc/kcore",
        "cat /proc/1/environ | grep LAMELLA_MARK",
        "echo max > $(ls /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null)",
        "dmesg",
        "date -s 2020-01-01 2>&1 | grep -v permitted | grep -v 2020",
        "nsenter -t 1 -m true",
        "swapon /tmp/swap",
        "insmod /tmp/x.ko",
    ],
)
async def test_what_root_inside_may_not(lab: Lab, driver: OciDriver, attempt: str) -> None:
    code, output, errors = await run(driver, lab.machine("sh", "-c", attempt))
    assert code != 0, (output, errors)


async def test_low_ports_are_free_to_every_user(lab: Lab, driver: OciDriver) -> None:
    script = "nc -l -p 80 127.0.0.1 -e echo served & sleep 0.3; nc 127.0.0.1 80"
    code, output, errors = await run(driver, lab.machine("sh", "-c", script, user="ann"))
    assert (code, output) == (0, b"served\n"), errors


@pytest.mark.skipif(not (own("lamella-pause").parent / "lamella-agent").exists(), reason="no agent is built")
class TestFiles:
    """The five file verbs, by the agent inside."""

    async def box(self, lab: Lab, driver: OciDriver) -> str:
        machine = lab.machine("sleep", "1000")
        await driver.create(machine)
        await driver.start(machine.id)
        return machine.id

    async def test_in_and_out(self, lab: Lab, driver: OciDriver) -> None:
        id = await self.box(lab, driver)
        await driver.make_directory(id, "/srv/a/b", mode=0o750, uid=1000, gid=10)
        data = os.urandom(3 << 20)
        await driver.write_file(id, "/srv/a/b/blob", chunks(data[:100], data[100:]), mode=0o640, uid=1000, gid=1000)
        assert b"".join([piece async for piece in driver.read_file(id, "/srv/a/b/blob")]) == data
        info = await driver.stat(id, "/srv/a/b/blob")
        assert (info.type, info.size, info.mode, info.uid) == (FileType.FILE, len(data), 0o640, 1000)
        assert [entry.path.rpartition("/")[2] for entry in await driver.list_directory(id, "/srv/a/b")] == ["blob"]
        with pytest.raises(NotFound):
            await driver.stat(id, "/nothing")
        assert (await driver.usage(id)).processes == 1

    async def test_links_lead_inside_only(self, lab: Lab, driver: OciDriver, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("of the host")
        id = await self.box(lab, driver)
        script = f"ln -s {secret} /leak; ln -s / /all; ln -s /../../../../../.. /up; mkdir -p /etc2; ln -s {tmp_path} /etc2/d"
        stream = await driver.exec(id, ExecSpec(command=["sh", "-c", script]))
        assert (await collect(stream))[0] == 0
        for path in ("/leak", f"/all{secret}", f"/up{secret}", f"/../../../../../..{secret}", "/etc2/d/secret"):
            with pytest.raises(LamellaError):
                [piece async for piece in driver.read_file(id, path)]
        with pytest.raises(LamellaError):
            await driver.write_file(id, "/etc2/d/new", chunks(b"x"))
        await driver.write_file(id, "/up/written", chunks(b"inside"))
        assert b"".join([piece async for piece in driver.read_file(id, "/written")]) == b"inside"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "secret"]
        assert secret.read_text() == "of the host"


async def test_a_passwd_that_is_a_link_is_read_inside(lab: Lab, driver: OciDriver, tmp_path: Path) -> None:
    fake = tmp_path / "passwd"
    fake.write_text("ann:x:7:7::/:/bin/sh\n")
    (lab.layers[0] / "etc").mkdir()
    (lab.layers[0] / "etc" / "passwd").symlink_to(fake)
    with pytest.raises(LamellaError, match="ann"):
        await driver.create(lab.machine("true", user="ann"))


async def test_a_link_where_a_generated_file_goes_does_not_lead_out(
    lab: Lab, driver: OciDriver, tmp_path: Path
) -> None:
    target = tmp_path / "hosts-of-the-host"
    target.write_text("untouched")
    (lab.layers[0] / "etc").mkdir()
    (lab.layers[0] / "etc" / "hosts").symlink_to(target)
    machine = lab.machine("sh", "-c", "echo evil >> /etc/hosts; true")
    await run(driver, machine)
    assert target.read_text() == "untouched"
