"""restic as the engine (https://restic.readthedocs.io/en/v0.14.0/): chosen because it alone of the two speaks S3, SFTP and directories, and
skips a file that did not change without opening it.

Its password comes from a pipe, S3's keys from its environment, SSH's from a file that root alone can read; nothing secret is on a command
line. What of ours is kept beside the content is in tags.
"""

import asyncio
import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lamella.host.linux.processes import environment
from lamella.host.storage.backup import child, restic_errors, restic_locks
from lamella.host.storage.backup.engine import Damage, Summary, Told
from lamella.host.storage.backup.location import Location
from lamella.model.backup import BackupNote, Credentials
from lamella.model.backup_requests import Stored
from lamella.model.errors import Conflict, Corrupt, Internal, NotFound

TAG = "lamella"
_NOTE = "lamella-note="
# Seconds without a sign of life after which a run is given up, and how often it tells how far it is, a second.
PATIENCE = 180.0
_TELLS = 2
_INCOMPLETE = 3


class Places(msgspec.Struct, frozen=True):
    """Directories of ours: ``cache`` may be lost, ``work`` is emptied at every start, ``known`` keeps servers' keys."""

    cache: Path
    work: Path
    known: Path


class Config(msgspec.Struct):
    """Of a repository, as restic tells it."""

    id: str


class Snapshot(msgspec.Struct):
    """As restic lists it."""

    id: str
    tags: list[str] | None = None


class Stats(msgspec.Struct):
    """Of a snapshot."""

    total_size: int


class Line(msgspec.Struct):
    """What restic tells while it reads, and at the end."""

    message_type: str = ""
    bytes_done: int = 0
    total_bytes: int = 0
    total_bytes_processed: int = 0
    data_added: int = 0
    snapshot_id: str = ""


class Restic:
    """:class:`~lamella.host.storage.backup.engine.Engine`. *name* is the repository's id; *key* its 32 bytes."""

    def __init__(
        self, name: str, location: Location, key: bytes, credentials: Credentials, places: Places, mark: str
    ) -> None:
        self._name, self._location, self._credentials = name, location, credentials
        self._password = base64.b64encode(key)
        self._places, self._mark = places, mark
        self.patience = PATIENCE

    async def create(self) -> str:
        if self._location.directory:
            await asyncio.to_thread(_empty_directory, Path(self._location.directory))
        await self._run("init", "--repository-version", "2")
        return await self.identify()

    async def identify(self) -> str:
        return _json(await self._run("cat", "config", "--no-lock"), Config).id

    async def stored(self) -> list[Stored]:
        found: list[Stored] = []
        for item in await self._snapshots("--tag", TAG):
            note = _note(item.tags or [])
            if note is not None:
                found.append(Stored(engine_id=item.id, note=note))
        return found

    async def size(self, engine_id: str) -> int:
        words = ("stats", "--json", "--mode", "restore-size", engine_id, "--no-lock")
        return _json(await self._run(*words), Stats).total_size

    async def _snapshots(self, *words: str) -> list["Snapshot"]:
        return _json(await self._run("snapshots", "--json", "--no-lock", *words), list[Snapshot] | None) or []

    async def store(self, directory: Path, note: str, *, parent: str = "", told: Told | None = None) -> Summary:
        words = ["backup", "--json", "--host", "lamella", *_tags(note), "--exclude-caches=false", "."]
        # Without a parent it would look for one by itself, and trust what it finds.
        words += ["--parent", parent] if parent else ["--force"]
        return await self._stored(words, inside=directory, told=told)

    async def store_bytes(self, name: str, content: bytes, note: str) -> Summary:
        words = ["backup", "--json", "--host", "lamella", *_tags(note), "--stdin", "--stdin-filename", name]
        return await self._stored(words, stdin=content)

    async def _stored(
        self, words: list[str], *, inside: Path | None = None, stdin: bytes | None = None, told: Told | None = None
    ) -> Summary:
        last = Line()

        def line(text: bytes) -> None:
            nonlocal last
            said = _line(text)
            if said.message_type == "summary":
                last = said
            elif said.message_type == "status" and told is not None:
                told(said.bytes_done, said.total_bytes)

        ran = await self._try(words, inside=inside, stdin=stdin, line=line)
        if ran.code not in (0, _INCOMPLETE):
            raise restic_errors.of(ran, self._location)
        id = last.snapshot_id
        if ran.code == _INCOMPLETE:
            if id:
                await self.forget([id])
            raise Corrupt(
                "the backup was given up: something of what is backed up cannot be read", hint=ran.error[-300:]
            )
        if not id:
            raise Internal("the backup engine ended without a summary", hint=ran.error[-300:])
        return Summary(engine_id=id, read=last.total_bytes_processed, added=last.data_added)

    async def restore(
        self, engine_id: str, target: Path, *, include: list[str] | None = None, told: Told | None = None
    ) -> None:
        words = ["restore", engine_id, "--target", str(target), "--no-lock"]
        for path in include or []:
            words += ["--include", f"/{_literal(path)}"]

        def wrote(done: int) -> None:
            if told is not None:
                told(done, 0)

        ran = await self._try(words, wrote=wrote)
        if ran.code != 0:
            raise restic_errors.of(ran, self._location)

    async def read(self, engine_id: str, name: str) -> bytes:
        return await self._run("dump", engine_id, f"/{name}", "--no-lock")

    async def check(self, share: int, told: Told | None = None) -> Damage:
        reading = ["--read-data"] if share >= 100 else ["--read-data-subset", f"{share}%"] if share > 0 else []
        ran = await self._try(["check", *reading])
        if ran.code == 0:
            return Damage()
        if "contains errors" not in ran.error:
            raise restic_errors.of(ran, self._location)
        return restic_errors.damage(f"{ran.out.decode(errors='replace')}\n{ran.error}")

    async def hit(self, packs: list[str], engine_ids: list[str]) -> list[str]:
        found: list[str] = []
        for id in engine_ids:
            # With --pack it tells only the first snapshot that it finds a blob in, so each is asked for by itself.
            ran = await self._try(["find", "--json", "--no-lock", "--snapshot", id, "--pack", *packs])
            if ran.code != 0 or b'"object_type"' in ran.out:
                found.append(id)
        return found

    async def forget(self, engine_ids: list[str]) -> None:
        known = {item.id for item in await self._snapshots()}
        ids = [id for id in engine_ids if any(full.startswith(id) for full in known)]
        if ids:
            await self._run("forget", *ids)

    async def prune(self, told: Told | None = None) -> None:
        await self._run("prune")

    def mounting(self, point: Path) -> tuple[list[str], dict[str, str], bytes]:
        words = ["mount", "--no-lock", "--path-template", "ids/%i", str(point)]
        return self._argv(words, None), self._environment(), self._password

    # --- running it

    async def _run(self, *words: str, stdin: bytes | None = None) -> bytes:
        ran = await self._try(list(words), stdin=stdin)
        if ran.code != 0:
            raise restic_errors.of(ran, self._location)
        return ran.out

    async def _try(self, words: list[str], *, patient: bool = True, **options: Any) -> child.Ran:
        """Once more when the lock of somebody who is dead stood in the way."""
        ran = await self._once(words, **options)
        if patient and ran.code != 0 and restic_errors.locked(ran):
            await restic_locks.clear(self._raw, self._location)
            ran = await self._once(words, **options)
        return ran

    async def _raw(self, words: Sequence[str]) -> child.Ran:
        return await self._once(list(words))

    async def _once(self, words: list[str], *, inside: Path | None = None, **options: Any) -> child.Ran:
        await asyncio.to_thread(self._prepare)
        return await child.run(
            self._argv(words, inside),
            environment=self._environment(),
            secret=self._password,
            patience=self.patience,
            **options,
        )

    def _argv(self, words: list[str], inside: Path | None) -> list[str]:
        front = ["/usr/bin/env", "-C", str(inside)] if inside is not None else ["/usr/bin/env"]
        command = [*front, "restic", "--repo", self._location.engine, *words]
        if self._location.sftp:
            command += ["-o", f"sftp.command={' '.join(self._ssh())}"]
        return command

    def _ssh(self) -> list[str]:
        place = self._location
        words = ["ssh", "-p", str(place.port), "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
        words += [
            "-o",
            "ServerAliveInterval=15",
            "-o",
            "ServerAliveCountMax=4",
            "-o",
            "StrictHostKeyChecking=accept-new",
        ]
        words += ["-o", f"UserKnownHostsFile={self._known}"]
        if self._credentials.ssh_key:
            words += ["-o", "IdentitiesOnly=yes", "-i", str(self._identity)]
        return [*words, "-l", place.user, place.host.strip("[]"), "-s", "sftp"]

    @property
    def _identity(self) -> Path:
        return self._places.work / f"{self._name}.ssh"

    @property
    def _known(self) -> Path:
        return self._places.known / f"{self._name}.known_hosts"

    def _prepare(self) -> None:
        for place in (self._places.cache, self._places.work, self._places.known):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._location.sftp and self._credentials.ssh_key:
            write_private(self._identity, self._credentials.ssh_key.rstrip() + "\n")
        if self._location.sftp and self._credentials.known_hosts and not self._known.exists():
            write_private(self._known, self._credentials.known_hosts.rstrip() + "\n")

    def _environment(self) -> dict[str, str]:
        more = {
            "RESTIC_PASSWORD_FILE": child.SECRET_FILE,
            "RESTIC_CACHE_DIR": str(self._places.cache),
            "RESTIC_PROGRESS_FPS": str(_TELLS),
            "TMPDIR": str(self._places.work),
            "HOME": os.environ.get("HOME", "/root"),
        }
        if self._location.s3:
            more["AWS_ACCESS_KEY_ID"] = self._credentials.access_key
            more["AWS_SECRET_ACCESS_KEY"] = self._credentials.secret_key
            if self._credentials.region:
                more["AWS_DEFAULT_REGION"] = self._credentials.region
        return environment(self._mark, **more)


def encode_note(note: BackupNote) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(note)).decode()


def write_private(path: Path, text: str) -> None:
    """A file that only root can read, whole or not at all."""
    draft = path.with_suffix(f".{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    draft.rename(path)


def _tags(note: str) -> list[str]:
    return ["--tag", TAG, "--tag", f"{_NOTE}{note}"]


def _note(tags: list[str]) -> BackupNote | None:
    for tag in tags:
        if tag.startswith(_NOTE):
            try:
                return msgspec.json.decode(base64.urlsafe_b64decode(tag.removeprefix(_NOTE)), type=BackupNote)
            except (ValueError, msgspec.DecodeError):
                return None
    return None


def _literal(path: str) -> str:
    """*path* for restic's patterns (Go's filepath.Match)."""
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in path)


def _line(text: bytes) -> Line:
    try:
        return msgspec.json.decode(text, type=Line)
    except msgspec.DecodeError:
        return Line()


def _json(text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise Internal("the backup engine's answer is not understood", hint=str(error)) from None


def _empty_directory(path: Path) -> None:
    """:raise Conflict: when there is something else in it. :raise NotFound: when what it would be in is not there."""
    if not path.parent.exists():
        raise NotFound(
            f"{path.parent} is not there: nothing can be kept in {path}", hint="mount it first", field="spec.url"
        )
    if path.exists() and any(path.iterdir()) and not (path / "config").exists():
        raise Conflict(f"{path} holds something that is no repository", hint="choose an empty directory")
