"""Keys that a TPM keeps: a real software TPM, and another one that must not open them."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lamella.host.compute.driver import Home
from lamella.host.linux.processes import environment
from lamella.host.storage.keys import KeyRing, new_key
from lamella.host.storage.tpm import Tpm
from lamella.model.errors import Corrupt, Unavailable
from lamella.model.ids import new_id
from lamella.model.storage import KeyWrap

pytestmark = pytest.mark.skipif(
    shutil.which("swtpm") is None or shutil.which("tpm2_create") is None,
    reason="no swtpm or tpm2-tools on this machine",
)
MARK = "lamella-tpmtest"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(place: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A TPM that answers, and its port; another port is taken when somebody was faster."""
    said = b""
    for _ in range(5):
        port = free_port()
        command = [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={place}"),
            *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
            *("--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"),
            *("--flags", "not-need-init,startup-clear"),
        ]
        daemon = subprocess.Popen(command, env=environment(MARK), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 90
        while daemon.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port + 1)) == 0:
                    return daemon, port
            time.sleep(0.02)
        daemon.kill()
        said = daemon.communicate(timeout=90)[1]
    raise AssertionError(f"swtpm does not start: {said.decode(errors='replace')}")


@contextmanager
def software_tpm(place: Path) -> Iterator[str]:
    """How to reach a TPM that lives in *place*."""
    place.mkdir(exist_ok=True)
    daemon, port = _started(place)
    try:
        yield f"swtpm:host=127.0.0.1,port={port}"
    finally:
        daemon.kill()
        daemon.communicate(timeout=90)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(path=tmp_path / "home", mark=MARK)


async def test_a_tpm_gives_a_key_back_after_its_restart_and_another_tpm_never(home: Home, tmp_path: Path) -> None:
    id, key = new_id("volume"), new_key()
    with software_tpm(tmp_path / "one") as tcti:
        text = await KeyRing(home, Tpm(home, tcti)).wrap(id, key, KeyWrap.TPM)
        assert await KeyRing(home, Tpm(home, tcti)).unwrap(id, text) == key
        with pytest.raises(Corrupt):
            await KeyRing(home, Tpm(home, tcti)).unwrap(new_id("volume"), text)
    with ExitStack() as both:
        tcti = both.enter_context(software_tpm(tmp_path / "one"))
        assert await KeyRing(home, Tpm(home, tcti)).unwrap(id, text) == key
        other = both.enter_context(software_tpm(tmp_path / "two"))
        with pytest.raises(Unavailable, match="the TPM did not do it"):
            await KeyRing(home, Tpm(home, other)).unwrap(id, text)
    # Nothing of it stays on the host, and no file ever held the key.
    assert list((home.run / "storage").iterdir()) == []


async def test_many_keys_do_not_fill_a_tpm(home: Home, tmp_path: Path) -> None:
    with software_tpm(tmp_path / "one") as tcti:
        ring = KeyRing(home, Tpm(home, tcti))
        for _ in range(4):
            id, key = new_id("volume"), new_key()
            assert await ring.unwrap(id, await ring.wrap(id, key, KeyWrap.TPM)) == key


async def test_a_host_without_a_tpm_says_so(home: Home) -> None:
    with pytest.raises(Unavailable):
        await KeyRing(home, Tpm(home, f"swtpm:host=127.0.0.1,port={free_port()}")).wrap(
            new_id("volume"), new_key(), KeyWrap.TPM
        )
