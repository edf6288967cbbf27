"""A PostgreSQL of our own on a Unix socket, run by an unprivileged user, for tests."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest


class Postgres:
    """One cluster in *root*. The path is short: a socket's may have 107 characters."""

    def __init__(self, root: Path) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not programs:
            pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
        self._bin = programs[-1].parent
        self._root = root
        self._numbers = count(1)
        # The server refuses to run as root.
        self._as: dict[str, Any] = (
            {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        )
        if self._as:
            shutil.chown(root, "nobody", "nogroup")
        self._server: subprocess.Popen[bytes] | None = None
        initdb = [
            self._bin / "initdb",
            "-D",
            root / "data",
            "-U",
            "lamella",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]
        subprocess.run([*initdb, "--no-sync"], check=True, capture_output=True, cwd=root, timeout=90, **self._as)

    def start(self) -> None:
        command = [self._bin / "postgres", "-D", self._root / "data", "-k", self._root, "-c", "listen_addresses="]
        with (self._root / "log").open("ab") as log:
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._root,
                start_new_session=True,
                **self._as,
            )
        deadline = time.monotonic() + 90
        while True:
            try:
                self.run("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    pytest.fail(f"PostgreSQL does not start: {(self._root / 'log').read_text()}")
                time.sleep(0.05)

    def stop(self, how: signal.Signals) -> None:
        """SIGINT ends it in order, SIGQUIT is a crash: no checkpoint, recovery at the next start."""
        assert self._server is not None
        self._server.send_signal(how)
        self._server.wait(90)

    def run(self, sql: str) -> None:
        with psycopg.connect(self._url(), autocommit=True) as connection:
            connection.execute(sql)  # type: ignore[arg-type]

    def _url(self) -> str:
        return f"postgresql://lamella@/postgres?host={self._root}"

    def new_schema(self) -> str:
        """Where a store finds nothing: a schema of its own, which is a hundred times cheaper than a database."""
        name = f"store{next(self._numbers)}"
        self.run(f"CREATE SCHEMA {name}")
        return f"{self._url()}&options=-csearch_path%3D{name}"


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server for as long as the block lasts; nothing is left of it."""
    root = Path(tempfile.mkdtemp(prefix="lamella-pg-", dir="/tmp"))
    try:
        server = Postgres(root)
        server.start()
        try:
            yield server
        finally:
            # Its files go anyway: no checkpoint.
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(root)
