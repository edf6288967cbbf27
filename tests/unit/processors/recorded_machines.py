"""Topologies of real machines, recorded from their sysfs (the ones that util-linux tests lscpu with), and put back as files."""

import json
from pathlib import Path

RECORDED = Path(__file__).parent / "recorded"
NAMES = sorted(path.stem for path in RECORDED.glob("*.json"))


def lay_out(name: str, place: Path) -> Path:
    """The files of the recording *name* below *place*."""
    for path, text in json.loads((RECORDED / f"{name}.json").read_text()).items():
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return place
