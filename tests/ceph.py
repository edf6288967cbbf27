"""A small real Ceph for tests: one monitor, one manager, and some OSDs on files of a directory, everything on 127.0.0.1.

The daemons are this process's children and end with it. ``paxos_propose_interval`` makes a change of the cluster's maps take
milliseconds instead of a second; chooseleaf type 0 spreads copies over OSDs of one host.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START = 60.0
_CONF = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}/0
ms_bind_msgr1 = false
public_network = 127.0.0.0/8
public_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {home}/keyring
run_dir = {home}/run
log_file = {home}/log/$name.log
pid_file = {home}/run/$name.pid
crash_dir = {home}/crash
admin_socket = {home}/run/$name.$pid.asok
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_allow_pool_delete = true
auth_allow_insecure_global_id_reclaim = false
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_osd_initial_require_min_compat_client = mimic
mgr_initial_modules =
mgr_stats_period = 1
mgr_tick_period = 1
mon_tick_interval = 1
[mon]
mon_data = {home}/mon
[mgr]
mgr_data = {home}/mgr
[osd]
osd_data = {home}/osd$id
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_size = {size}
bluestore_fsck_on_mount = false
osd_scrub_load_threshold = 0
osd_scrub_sleep = 0
osd_scrub_auto_repair = false
osd_op_num_shards = 2
"""


def missing() -> str:
    """Why no Ceph can be started here, or nothing."""
    tools = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd")
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    return f"{', '.join(lacking)} not installed: apt install ceph-mon ceph-mgr ceph-osd ceph-common" if lacking else ""


class Ceph:
    """A running cluster. ``conf`` names its configuration, with the administrator's keyring in it."""

    def __init__(self, home: Path, osds: int, size: int) -> None:
        self.home = home
        self.osds = osds
        self.conf = home / "ceph.conf"
        self._size = size
        self._running: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "LC_ALL": "C", "CEPH_CONF": str(self.conf)}

    def run(self, *command: str | Path, check: bool = True) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def ask(self, *command: str) -> Any:
        return json.loads(self.run("ceph", *command, "--format", "json"))

    def start(self) -> None:
        for name in ("mon", "mgr", "log", "run", "crash"):
            (self.home / name).mkdir(parents=True)
        fsid, port = str(uuid.uuid4()), _free_port()
        self.conf.write_text(_CONF.format(fsid=fsid, port=port, home=self.home, size=self._size))
        self._keys()
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", "monmap")
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._spawn("ceph-mon", "-f", "-i", "a")
        self._spawn("ceph-mgr", "-f", "-i", "x")
        made: list[subprocess.Popen[bytes]] = []
        for number in range(self.osds):
            (self.home / f"osd{number}").mkdir()
            id = str(uuid.uuid4())
            made.append(self._popen("ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", id))
            self.run("ceph", "osd", "new", id)
        for number, process in enumerate(made):
            assert process.wait(START) == 0, self.log(f"osd.{number}")
            self._spawn("ceph-osd", "-f", "-i", str(number))
        self.wait(lambda: self.ask("osd", "stat")["num_up_osds"] == self.osds, "the OSDs do not come up")

    def _keys(self) -> None:
        tool = ("ceph-authtool", "keyring", "--gen-key", "-n")
        self.run("ceph-authtool", "-C", "keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        everything = ("--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self.run(*tool, "client.admin", "--cap", "mon", "allow *", *everything)
        self.run(*tool, "mgr.x", "--cap", "mon", "allow profile mgr", "--cap", "osd", "allow *")
        for number in range(self.osds):
            self.run(
                *(*tool, f"osd.{number}", "--cap", "mon", "allow profile osd", "--cap", "mgr", "allow profile osd"),
                *("--cap", "osd", "allow *"),
            )

    def pool(self, name: str, copies: int = 1) -> str:
        """A new pool for block devices, ready."""
        self.run("ceph", "osd", "pool", "create", name, "4", "4", "replicated", "--size", str(copies))
        self.run("ceph", "osd", "pool", "application", "enable", name, "rbd")
        return name

    @contextlib.contextmanager
    def forgetful(self, seconds: int = 10) -> Iterator[None]:
        """A client that died is forgotten after *seconds*, not after 30. Those that live say so every five."""
        self.run("ceph", "config", "set", "osd", "osd_client_watch_timeout", str(seconds))
        try:
            yield
        finally:
            self.run("ceph", "config", "rm", "osd", "osd_client_watch_timeout")

    def client(self, name: str, *capabilities: str) -> Path:
        """The keyring of a new user."""
        keyring = self.home / f"client.{name}.keyring"
        self.run("ceph", "auth", "get-or-create", f"client.{name}", *capabilities, "-o", keyring)
        return keyring

    def wait(self, held: Any, why: str, seconds: float = START) -> None:
        deadline = time.monotonic() + seconds
        while not held():
            if time.monotonic() > deadline:
                raise AssertionError(f"{why}: {self.run('ceph', '-s', check=False)}")
            time.sleep(0.1)

    def log(self, name: str) -> str:
        path = self.home / "log" / f"{name}.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _popen(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.home / "log" / "out").open("ab") as out:
            return subprocess.Popen(
                command, cwd=self.home, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def _spawn(self, *command: str) -> None:
        self._running.append(self._popen(*command))

    def stop(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGKILL)
        for process in self._running:
            process.wait(90)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def small_ceph(home: Path, *, osds: int = 2, size: int = 6 << 30) -> Iterator[Ceph]:
    """A cluster of *osds* OSDs with *size* bytes each (sparse files), gone afterwards."""
    ceph = Ceph(home, osds, size)
    try:
        ceph.start()
        yield ceph
    finally:
        ceph.stop()
        shutil.rmtree(home, ignore_errors=True)
