"""A whole layer for tests and benchmarks: a daemon of its own in a network namespace of its own, with a small image."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


class LayerUnderTest:
    """A daemon in ``home``, started inside the namespace ``netns``; the command is run as a person would run it."""

    def __init__(self, home: Path, netns: str) -> None:
        self.home = home
        self.netns = netns
        self.environment = {**os.environ, "LAMELLA_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "160"}
        self.environment.pop("LAMELLA_HOST", None)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.extra: list[str] = []

    def start(self, *arguments: str) -> None:
        self.extra = list(arguments) or self.extra
        log = (self.home / "daemon.log").open("ab")
        with log:
            self.daemon = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.netns}", str(BIN / "lamellad"), *self.extra],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while self.lamella("ps", "-q", check=False).returncode != 0:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon does not answer:\n{self.log()}")
            time.sleep(0.05)

    def log(self) -> str:
        return (self.home / "daemon.log").read_text()[-6000:]

    def kill(self) -> None:
        """As a crash would: without a word."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait(90)

    def stop(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            self.daemon.wait(90)

    def lamella(
        self, *arguments: str, check: bool = True, stdin: bytes | None = None, timeout: float = 600
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [str(BIN / "lamella"), *arguments],
            env=self.environment,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"lamella {' '.join(arguments)} exited {done.returncode}\n"
                f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}\n{self.log()}"
            )
        return done

    def out(self, *arguments: str, **options: Any) -> str:
        return self.lamella(*arguments, **options).stdout.decode()

    def show(self, name: str) -> dict[str, Any]:
        return json.loads(self.out("show", name, "-o", "json"))

    def wait_phase(self, name: str, phase: str, timeout: float = 90) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            seen = self.show(name)
            if seen["status"]["phase"] == phase:
                return seen
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{name} is {seen['status']['phase']}, not {phase}: {seen['status']}\n{self.log()}"
                )
            time.sleep(0.05)

    def purge(self) -> None:
        self.stop()
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.netns}", str(BIN / "lamellad"), "--purge"],
            env=self.environment,
            capture_output=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr.decode()


def busybox_root(path: Path) -> Path:
    """A root filesystem of a megabyte: busybox with its applets, a user called app."""
    busybox = Path("/bin/busybox").read_bytes()
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes = b"", **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))

        for name in (
            "bin",
            "etc",
            "tmp",
            "root",
            "proc",
            "sys",
            "dev",
            "run",
            "home",
            "home/app",
            "var",
            "usr",
            "usr/bin",
        ):
            add(name, type=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        add("bin/busybox", busybox, mode=0o755)
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", type=tarfile.SYMTYPE, linkname="busybox")
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", mode=0o644)
        add("etc/group", b"root:x:0:\napp:x:1000:\n", mode=0o644)
    return path


@contextlib.contextmanager
def layer_in(home: Path, netns: str, *arguments: str) -> Iterator[LayerUnderTest]:
    home.mkdir(mode=0o700, exist_ok=True)
    layer = LayerUnderTest(home, netns)
    try:
        layer.start(*arguments)
        yield layer
    finally:
        layer.purge()
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def named_netns(name: str) -> Iterator[str]:
    """A network namespace with its loopback up, gone afterwards."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
