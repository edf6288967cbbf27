"""Somebody who uses every processor that he gets."""

import subprocess
from pathlib import Path


def spinner(files: list[Path]) -> subprocess.Popen[bytes]:
    """Comes in by *files*, before it begins."""
    script = "".join(f"echo $$ > {file}; " for file in files)
    return subprocess.Popen(["sh", "-c", script + "while :; do :; done"])
