"""What guests make dnsmasq say does not fill the disk, nor end it."""

import os
from pathlib import Path

from lamella.host.network.services.process import shorten


def test_a_long_log_begins_anew(tmp_path: Path) -> None:
    shorten(tmp_path)
    log = tmp_path / "log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, b"x" * 1024)
        shorten(tmp_path, 1024)
        assert log.stat().st_size == 1024
        os.write(descriptor, b"x")
        shorten(tmp_path, 1024)
        assert log.read_bytes() == b""
        os.write(descriptor, b"more")
        assert log.read_bytes() == b"more"
    finally:
        os.close(descriptor)
