"""Debian root filesystems made from packages with mmdebstrap(1): what can be built, from where, and how."""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from lamella.host.images import bytecode
from lamella.model.errors import Internal, Invalid, LamellaError, Unavailable, Unsupported

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9-]+)?")
_ARCHIVE = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_FORWARDED = re.compile(
    r'(Acquire::(?:http|https|ftp|Check-Valid-Until|Check-Date|ForceIPv[46]|Retries|Max-FutureTime)\b[^ ]*) "(.*)";'
)
_WITHOUT = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*")
_STEPS = tuple(
    f"I: {step}" for step in ("running apt-get", "downloading", "extracting", "installing", "cleaning", "creating")
)
_LONGEST = 1800.0
_TOLD_LINES = 12


class Release(msgspec.Struct, kw_only=True, frozen=True):
    """``epoch`` is the day it came out: no file of a build is younger, so that the same packages give the same digest."""

    number: str
    suite: str
    epoch: int


RELEASES = (
    Release(number="12", suite="bookworm", epoch=1686355200),
    Release(number="13", suite="trixie", epoch=1754697600),
)


def release(name: str) -> Release:
    """What *name* asks for: ``debian:12``, ``debian:bookworm``, …

    :raise Invalid: when it cannot be built; the sentence says what can.
    """
    distribution, _, version = name.partition(":")
    for one in RELEASES:
        if distribution == "debian" and version in (one.number, one.suite):
            return one
    known = ", ".join(f"debian:{one.number} (debian:{one.suite})" for one in RELEASES)
    raise Invalid(
        f"{name!r} cannot be built", hint=f"these can: {known}; pull or import everything else", field="source"
    )


def check_packages(packages: list[str]) -> list[str]:
    """:raise Invalid: when one is not the name of a Debian package (Policy 5.6.1)."""
    for name in packages:
        if _PACKAGE.fullmatch(name) is None:
            raise Invalid(
                f"{name!r} is not the name of a package",
                hint="write it as apt knows it: curl, python3",
                field="packages",
            )
    return packages


def mirrors(sources: list[str]) -> tuple[str, str]:
    """Where this host's apt gets Debian and its security updates from, read from the texts of its sources, one-line or deb822.

    What they do not say comes from Debian's own name for its mirrors.
    """
    found: list[str] = []
    for text in sources:
        for line in text.splitlines():
            one_line = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+\S", line)
            deb822 = re.match(r"URIs:\s*(\S+)", line, re.IGNORECASE)
            match = one_line or deb822
            if match and match[1].split(":")[0] in ("http", "https"):
                found.append(match[1].rstrip("/"))
    archive = next((uri for uri in found if uri.endswith("/debian")), _ARCHIVE)
    security = next((uri for uri in found if uri.endswith("/debian-security")), _SECURITY)
    return archive, security


def forwarded(configuration: str) -> list[str]:
    """The lines of ``apt-config dump`` that tell how the network is reached and what is believed of a clock or a certificate."""
    return [f'{match[1]} "{match[2]}";' for match in _FORWARDED.finditer(configuration) if match[2]]


def command(
    wanted: Release,
    packages: list[str],
    target: Path,
    archive: str,
    security: str,
    options: list[str],
    hooks: Sequence[str] = (),
) -> list[str]:
    """The argument vector. The host's apt settings are for the making alone and do not stay in the image. *hooks* are options more."""
    return [
        "mmdebstrap",
        "--variant=minbase",
        "--format=tar",
        *([f"--include={','.join(packages)}"] if packages else []),
        *[f"--aptopt={option}" for option in options],
        *[f"--dpkgopt=path-exclude={path}" for path in _WITHOUT],
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-include=/usr/share/locale/locale.alias",
        *hooks,
        f'--customize-hook={shlex.join([sys.executable, "-I", bytecode.__file__])} "$1" {wanted.epoch}',
        '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/hostname" "$1/etc/resolv.conf"',
        wanted.suite,
        str(target),
        f"deb {archive} {wanted.suite} main",
        f"deb {archive} {wanted.suite}-updates main",
        f"deb {security} {wanted.suite}-security main",
    ]


def read_sources(folder: Path = Path("/etc/apt")) -> list[str]:
    """The texts of this host's apt sources."""
    files = [
        folder / "sources.list",
        *sorted(folder.glob("sources.list.d/*.list")),
        *sorted(folder.glob("sources.list.d/*.sources")),
    ]
    return [file.read_text("utf-8", "replace") for file in files if file.is_file()]


async def bootstrap(
    wanted: Release,
    packages: list[str],
    target: Path,
    scratch: Path,
    step: Callable[[str], None],
    mark: str,
    hooks: Sequence[str] = (),
) -> None:
    """Write the tar of *wanted* with *packages* to *target*. *step* hears what is being done, *hooks* are options of mmdebstrap.

    :raise Unsupported: when mmdebstrap is not installed.
    :raise Invalid: when a package is not known.
    :raise Unavailable: when the mirror cannot be reached.
    """
    environment = {**os.environ, "TMPDIR": str(scratch), "SOURCE_DATE_EPOCH": str(wanted.epoch), "LC_ALL": "C.UTF-8"}
    if mark:
        environment["LAMELLA_MARK"] = mark
    try:
        dump = await _output(["apt-config", "dump"], environment)
        sources = await asyncio.to_thread(read_sources)
        arguments = command(wanted, packages, target, *mirrors(sources), forwarded(dump), hooks)
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise Unsupported(f"{error.filename} is not installed here", hint="apt install mmdebstrap") from error
    told: list[str] = []
    try:
        async with asyncio.timeout(_LONGEST):
            async for line in _lines(process):
                told = [*told[1 - _TOLD_LINES :], line]
                if line.startswith(_STEPS):
                    step(line[3:].rstrip("."))
            code = await process.wait()
    except TimeoutError:
        raise Unavailable(
            f"debian:{wanted.number} was not built within {_LONGEST / 60:g} minutes", hint="look at the mirror"
        ) from None
    finally:
        await asyncio.shield(_end(process))
    if code != 0:
        raise failure(wanted, told)


def failure(wanted: Release, told: list[str]) -> LamellaError:
    """What the last lines that mmdebstrap and apt said mean to a person."""
    text = "\n".join(told)
    unknown = re.findall(r"E: (?:Unable to locate package |Package ')([^\s']+)", text)
    if unknown:
        names = ", ".join(sorted(set(unknown)))
        return Invalid(
            f"debian:{wanted.number} has no package {names}", hint="write packages as apt knows them", field="packages"
        )
    errors = [line.removeprefix("E: ") for line in told if line.startswith("E: ")] or told[-3:]
    if re.search(r"Failed to fetch|Could not resolve|Could not connect|Temporary failure", text):
        return Unavailable(
            f"debian:{wanted.number} cannot be built: {errors[0][:500]}",
            hint="does `apt-get update` work on this host?",
        )
    return Internal(f"debian:{wanted.number} cannot be built: {'; '.join(errors)[:1000]}", hint="mmdebstrap(1) said so")


async def _output(arguments: list[str], environment: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
    )
    output, _ = await process.communicate()
    return output.decode("utf-8", "replace")


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    assert process.stderr is not None
    buffer = b""
    while piece := await process.stderr.read(64 << 10):
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            if text := line.split(b"\r")[-1].decode("utf-8", "replace").strip():
                yield text
        buffer = buffer[-(64 << 10) :]


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its whole session: apt and dpkg below it too. First asked, so that it takes its mounts away."""
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await process.wait()
