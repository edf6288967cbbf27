"""What a person waits for imports no more than it needs (docs/library.md has the figures)."""

import subprocess
import sys

import pytest

HEAVY = {
    *(
        "asyncio",
        "ssl",
        "http.client",
        "typing",
        "inspect",
        "dataclasses",
        "pathlib",
        "shutil",
        "hashlib",
        "tempfile",
        "threading",
    ),
    *(
        "msgspec",
        "h11",
        "wsproto",
        "rich",
        "yaml",
        "litestar",
        "sqlalchemy",
        "importlib.metadata",
        "urllib.parse",
        "subprocess",
    ),
}


@pytest.mark.parametrize(
    "modules", ["cli.ps", "cli.exec,lamella.cli.pump,lamella.client.blocking.channel", "cli.run", "cli.lifecycle"]
)
def test_the_commands_that_people_wait_for(modules: str) -> None:
    script = f"import sys, lamella.cli.main, lamella.cli.parser, lamella.{modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=90)
    assert set(done.stdout.split()) & HEAVY == set()


def test_the_library_is_imported_when_it_is_asked_for() -> None:
    script = "import sys, lamella; lamella.connect_sync; assert 'asyncio' not in sys.modules; lamella.connect"
    subprocess.run([sys.executable, "-I", "-c", script], check=True, timeout=90)
