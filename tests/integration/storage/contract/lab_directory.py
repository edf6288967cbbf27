"""The directory driver on the filesystem of the tests, which decides whether snapshots are layers or shared blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract_lab import Lab


@contextmanager
def lab(scratch: Path) -> Iterator[Lab]:
    driver = "lamella.host.storage.directory:DirectoryDriver"
    yield Lab(name="directory", driver=driver, path=str(scratch / "pool"), scratch=scratch)
