"""What restic complains of, as our errors. Its exit code says only that it failed; the reason is in its words."""

import re

from lamella.host.storage.backup.child import Ran
from lamella.host.storage.backup.engine import Damage
from lamella.host.storage.backup.location import Location
from lamella.model.errors import Conflict, Corrupt, Forbidden, Internal, LamellaError, NoRoom, NotFound, Unavailable

_HEX = re.compile(r"\b[0-9a-f]{64}\b")
_PROBLEM = re.compile(r"does not match|error|damaged|missing|not found|failed|invalid|unexpected", re.IGNORECASE)
_LOCKED = ("repository is already locked", "unable to create lock")

_SAID: list[tuple[str, type[LamellaError], str, str]] = [
    (r"wrong password or no key found", Forbidden, "the key is not this repository's", "give its recovery key"),
    (r"already (initialized|exists)", Conflict, "there is a repository already", "open it with its recovery key"),
    (r"no space left on device|disk quota exceeded", NoRoom, "the repository is full", "give it room, or prune it"),
    (
        r"ciphertext verification failed|Pack ID does not match|hash .*does not match|decrypting blob|invalid data returned"
        r"|not found in (the )?(repository|index)|wrong data returned|unable to load (tree|index)|failed to load tree",
        Corrupt,
        "what is stored in the repository is damaged",
        "lamella backup verify tells which backups are hit",
    ),
    (r"Is there a repository at|unable to open config file|config.* does not exist|no matching ID|no snapshot found"
     r"|NoSuchBucket|bucket does not exist", NotFound, "it is not in the repository", "is what it is in mounted?"),
    (r"AccessDenied|InvalidAccessKey|SignatureDoesNotMatch|Permission denied|Host key verification failed", Forbidden,
     "where the repository is does not let us in", "check the credentials and the server's key"),
    (r"connection re(fused|set)|no such host|timeout|timed out|unreachable|unable to start the sftp|broken pipe|EOF"
     r"|connect to host|ssh command exited|connection lost"
     r"|Server Error|ServiceUnavailable|input/output error|stale file handle|not connected",
     Unavailable, "the repository cannot be reached", "see to where it is, and try again"),
]  # fmt: skip


def locked(ran: Ran) -> bool:
    """Whether a lock stood in the way."""
    return any(words in ran.error for words in _LOCKED)


def of(ran: Ran, location: Location) -> LamellaError:
    """The error that *ran* ended with."""
    said = _told(ran.error)
    if locked(ran):
        return Unavailable(f"the repository {location.engine} is in use: {said}", hint="try again when that has ended")
    if ran.code > 128:
        return Unavailable(f"the backup engine was ended by signal {ran.code - 128}", hint="try again")
    for pattern, kind, sentence, hint in _SAID:
        if re.search(pattern, ran.error, re.IGNORECASE):
            return kind(f"{location.engine}: {sentence}: {said}", hint=hint)
    return Internal(f"the backup engine failed ({ran.code}): {said}", hint="the host's log has more")


def damage(text: str) -> Damage:
    """What a check said: its complaints, and the packs that they name."""
    problems: list[str] = []
    packs: list[str] = []
    for line in text.splitlines():
        if _PROBLEM.search(line) and not line.startswith("Fatal:") and "no errors" not in line:
            problems.append(line.strip()[:300])
            # The first is the one that is wanted; a second one is what was found in its place.
            packs += _HEX.findall(line)[:1]
    return Damage(
        problems=list(dict.fromkeys(problems)) or ["the repository contains errors"], packs=list(dict.fromkeys(packs))
    )


def _told(text: str) -> str:
    """The line that says most: the last of its own words, without its prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # It may stand behind what another line of its program left unfinished.
    fatal = [line.partition("Fatal: ")[2] for line in lines if "Fatal: " in line]
    return (fatal or lines or ["it said nothing"])[-1][:300]
