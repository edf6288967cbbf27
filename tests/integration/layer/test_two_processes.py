"""Control and host as two daemons with a home each: what crosses the wire, and what happens when either of them dies."""

import asyncio
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.house import BIN, LayerUnderTest

from lamella.model.assignment import InstanceReport
from lamella.model.errors import Forbidden, Unauthenticated
from lamella.model.host import HostStatus
from lamella.model.instance import InstanceStatus
from lamella.wire.agent import RemoteAgent
from lamella.wire.certificates import Bundle
from lamella.wire.desk import RemoteDesk

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

CONTROL = "127.0.0.1:7443"
HOST = "127.0.0.1:7444"
CLONE_NEWNET = 0x4000_0000


class HostDaemon(LayerUnderTest):
    """A daemon without an API of its own: it is up when control says so."""

    def __init__(self, home: Path, netns: str, *arguments: str) -> None:
        super().__init__(home, netns)
        self.extra = ["--role", "host", *arguments]

    def start(self, *arguments: str) -> None:
        with (self.home / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.netns}", str(BIN / "lamellad"), *self.extra, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while " ready home=" not in self.log().rpartition("host starts here")[2]:
            assert self.daemon.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self) -> None:
        # A test that failed half-way may have left it silent.
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGCONT)
        super().stop()

    def kill(self) -> None:
        super().kill()
        with (self.home / "daemon.log").open("a") as log:
            log.write("host starts here\n")


def issue(control: LayerUnderTest, name: str) -> Path:
    done = subprocess.run(
        [BIN / "lamellad", "--issue", name], env=control.environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def host_of(control: LayerUnderTest, home: Path, name: str, address: str) -> HostDaemon:
    home.mkdir(mode=0o700)
    bundle = str(issue(control, name))
    return HostDaemon(home, control.netns, "--control", CONTROL, "--listen", address, "--bundle", bundle)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory, netns: str) -> Iterator[LayerUnderTest]:
    home = tmp_path_factory.mktemp("control") / "home"
    home.mkdir(mode=0o700)
    layer = LayerUnderTest(home, netns)
    try:
        layer.start("--role", "control", "--listen", CONTROL)
        yield layer
    finally:
        layer.purge()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, control: LayerUnderTest, root_tar: Path) -> Iterator[HostDaemon]:
    made = host_of(control, tmp_path_factory.mktemp("host") / "home", "alpha", HOST)
    try:
        made.start()
        control.lamella("image", "import", str(root_tar), "--name", "busybox")
        yield made
    finally:
        made.purge()


def test_everything_crosses_the_wire(control: LayerUnderTest, host: HostDaemon, tmp_path: Path) -> None:
    done = control.lamella("run", "--rm", "busybox", "--", "sh", "-c", "echo out; echo err >&2; exit 9", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, b"out\n", b"err\n")
    control.lamella("run", "-d", "--name", "far", "-l", "a=b", "busybox", "--", "sh", "-c", "echo told; sleep 1000")
    data = os.urandom(3 << 20)
    done = control.lamella("exec", "-i", "far", "--", "sh", "-c", "md5sum; exit 4", stdin=data, check=False)
    assert (done.returncode, done.stdout.split()[0].decode()) == (4, hashlib.md5(data).hexdigest())
    assert len(control.lamella("exec", "far", "--", "head", "-c", "3000000", "/dev/zero").stdout) == 3_000_000
    assert b"told\n" in control.lamella("logs", "far").stdout
    (tmp_path / "in").write_bytes(data)
    control.lamella("cp", str(tmp_path / "in"), "far:/root/in")
    control.lamella("cp", "far:/root/in", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    missing = control.lamella("cp", "far:/nowhere", str(tmp_path / "x"), check=False)
    assert missing.returncode == 1 and b"nowhere" in missing.stderr
    contract = json.loads(control.out("contract", "far", "-o", "json"))
    assert contract["observed"] and all(m["evidence"] for m in contract["isolation"])
    control.lamella("pause", "far")
    assert b"paused" in control.lamella("exec", "far", "--", "true", check=False).stderr
    control.lamella("resume", "far")
    control.lamella("set", "far", "--memory", "96MiB")
    assert "96" in control.out("contract", "far")
    assert "far" in control.out("top")
    assert "alpha" in control.out("doctor")
    assert control.lamella("image", "gc").returncode == 0
    control.lamella("rm", "--force", "far")


def test_what_runs_outlives_its_host_s_daemon(control: LayerUnderTest, host: HostDaemon) -> None:
    control.lamella("run", "-d", "--name", "lives", "busybox", "--", "sleep", "1000")
    control.lamella(
        "run", "-d", "--name", "ends", "busybox", "--",
        "sh", "-c", "while ! [ -e /root/go ]; do sleep 0.1; done; sleep 1; echo last words; exit 42",
    )  # fmt: skip
    pid = control.wait_phase("lives", "running")["status"]["pid"]
    control.lamella("exec", "ends", "--", "touch", "/root/go")
    host.kill()
    time.sleep(2)
    assert Path(f"/proc/{pid}").exists()
    host.start()
    assert control.out("exec", "lives", "--", "echo", "here") == "here\n"
    seen = control.show("lives")["status"]
    assert (seen["phase"], seen["pid"], seen["epoch"], seen["restarts"]) == ("running", pid, 1, 0)
    assert control.wait_phase("ends", "stopped")["status"]["exit_code"] == 42
    assert "last words" in control.out("logs", "ends")
    control.lamella("rm", "--force", "lives")
    control.lamella("rm", "ends")


def test_a_host_goes_on_without_control(control: LayerUnderTest, host: HostDaemon) -> None:
    control.lamella("run", "-d", "--name", "lives", "busybox", "--", "sleep", "1000")
    control.lamella(
        "run", "-d", "--name", "ends", "busybox", "--",
        "sh", "-c", "while ! [ -e /root/go ]; do sleep 0.1; done; sleep 1; exit 43",
    )  # fmt: skip
    control.lamella(
        "run", "-d", "--restart", "on-failure:1", "--name", "again", "busybox", "--",
        "sh", "-c", "while ! [ -e /root/go ]; do sleep 0.1; done; sleep 1; exit 44",
    )  # fmt: skip
    pid = control.wait_phase("lives", "running")["status"]["pid"]
    for name in ("ends", "again"):
        control.lamella("exec", name, "--", "touch", "/root/go")
    control.kill()
    time.sleep(4)
    assert host.daemon is not None and host.daemon.poll() is None and Path(f"/proc/{pid}").exists()
    control.start()
    assert control.wait_phase("ends", "stopped")["status"]["exit_code"] == 43
    # Its policy was kept while nobody was there to ask.
    status = control.wait_phase("again", "stopped")["status"]
    assert (status["exit_code"], status["restarts"]) == (44, 1)
    assert control.show("lives")["status"]["pid"] == pid
    assert control.out("exec", "lives", "--", "echo", "here") == "here\n"
    done = control.lamella("run", "--rm", "busybox", "--", "sh", "-c", "exit 3", check=False, timeout=90)
    assert done.returncode == 3
    for name in ("lives", "ends", "again"):
        control.lamella("rm", "--force", name)


def test_a_host_waits_for_control(control: LayerUnderTest, host: HostDaemon) -> None:
    """Both begin in any order: the machine booted, and control comes later."""
    control.kill()
    host.kill()
    thread = threading.Thread(target=host.start)
    thread.start()
    time.sleep(3)
    assert thread.is_alive() and host.daemon is not None and host.daemon.poll() is None
    control.start()
    thread.join(90)
    assert not thread.is_alive()
    assert control.out("run", "--rm", "busybox", "--", "echo", "both", timeout=90) == "both\n"


def test_a_host_that_is_away_is_told_in_bounded_time(control: LayerUnderTest, host: HostDaemon) -> None:
    """Whether it is dead or only silent, and for every verb: a sentence, no traceback, no hang."""
    for name in ("far", "near"):
        control.lamella("run", "-d", "--name", name, "busybox", "--", "sleep", "1000")
    assert host.daemon is not None
    for silent in (True, False):
        if silent:
            os.kill(host.daemon.pid, signal.SIGSTOP)
        else:
            os.kill(host.daemon.pid, signal.SIGCONT)
            host.kill()
        # Before anybody has noticed: as long as one connection may take.
        began = time.monotonic()
        done = control.lamella("exec", "far", "--", "true", check=False, timeout=90)
        assert done.returncode == 125 and b"Traceback" not in done.stderr and time.monotonic() - began < 60, done
        began = time.monotonic()
        while "away" not in control.out("host", "ls", timeout=90):
            assert time.monotonic() - began < 90
            time.sleep(0.2)
        for arguments in (
            ("exec", "far", "--", "true"),
            ("logs", "far"),
            ("cp", "far:/etc/passwd", "/dev/null"),
            ("contract", "far"),
            ("run", "-d", "busybox", "--", "true"),
            ("run", "--rm", "busybox", "--", "true"),
            *([] if silent else [("stop", "far"), ("rm", "--force", "near")]),
        ):
            began = time.monotonic()
            done = control.lamella(*arguments, check=False, timeout=90)
            assert done.returncode in (1, 125), (silent, arguments, done)
            assert b"is away" in done.stderr and b"Traceback" not in done.stderr, (silent, arguments, done)
            assert time.monotonic() - began < 45, (silent, arguments)
        assert "far" in control.out("ps", "-a", timeout=90)
        doctor = control.lamella("doctor", check=False, timeout=90)
        assert b"alpha" in doctor.stdout and b"away" in doctor.stdout, doctor
        control.lamella("top", check=False, timeout=90)
    host.start()
    # What was asked while it was away has been written down, and happens now.
    control.wait_phase("far", "stopped")
    control.lamella("start", "far")
    assert control.out("exec", "far", "--", "echo", "here") == "here\n"
    control.lamella("rm", "--force", "far")
    assert control.out("ps", "-a", "-q") == ""


def test_a_host_of_another_authority_is_refused(control: LayerUnderTest, tmp_path: Path, netns: str) -> None:
    other = LayerUnderTest(tmp_path / "other", netns)
    other.home.mkdir()
    bundle = issue(other, "alpha")
    home = tmp_path / "home"
    home.mkdir()
    arguments = ["--role", "host", "--control", CONTROL, "--listen", "127.0.0.1:7445", "--bundle", str(bundle)]
    stranger = LayerUnderTest(home, netns)
    try:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{netns}", BIN / "lamellad", *arguments],
            env=stranger.environment, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 1 and "trust" in done.stderr and "Traceback" not in done.stderr, done.stderr
    finally:
        stranger.purge()


def inside(netns: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do *work* in a thread that is in the namespace *netns*, as nothing else of this process is."""
    failures: list[BaseException] = []

    def enter() -> None:
        with Path(f"/run/netns/{netns}").open() as place:
            assert ctypes.CDLL(None, use_errno=True).setns(place.fileno(), CLONE_NEWNET) == 0
        try:
            asyncio.run(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


def test_a_host_is_answered_for_itself_alone(control: LayerUnderTest, host: HostDaemon) -> None:
    """With the certificate of beta, alpha's instances are neither told nor reported."""
    control.lamella("create", "--name", "mine", "busybox", "--", "true")
    instance = control.show("mine")
    alpha = instance["status"]["host"]
    bundle = Bundle.load(issue(control, "beta"))

    async def work() -> None:
        desk = RemoteDesk(f"https://{CONTROL}", bundle)
        beta = await desk.register("beta", HostStatus(), "https://127.0.0.1:7446")
        with pytest.raises(Forbidden):
            await desk.register("alpha", HostStatus(), "https://127.0.0.1:7446")
        with pytest.raises(Forbidden):
            await desk.assignments(alpha, 0, 0)
        report = InstanceReport(id=instance["id"], status=InstanceStatus(exit_code=7), removed=True)
        for claimed in (alpha, beta):
            with pytest.raises(Forbidden):
                await desk.report(claimed, [report])
        assert (await desk.assignments(beta, 0, 0)).instances == []
        await desk.close()
        # A host is no control: it may not call another host's agent.
        agent = RemoteAgent(f"https://{HOST}", bundle, name="alpha")
        with pytest.raises((Forbidden, Unauthenticated)):
            await agent.facts()
        await agent.close()

    inside(control.netns, work)
    assert control.show("mine")["status"]["exit_code"] is None
    control.lamella("rm", "mine")
