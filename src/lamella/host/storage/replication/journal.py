"""What a host writes down of its replications: one small file each, replaced by rename, on the disk before anything relies on it.

state/storage/replications/<id>.json    how far it is, and what has to be undone
state/storage/fences/<volume id>.json   why this volume is opened for nobody
"""

from datetime import datetime

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.storage.records import Folder
from lamella.model.errors import Conflict
from lamella.model.replication import Replication
from lamella.model.storage import Volume

_MOST_AGES = 2000


class Age(msgspec.Struct, kw_only=True):
    """How old the newest whole copy was just before it was replaced by the one that ended ``at``; seconds."""

    at: datetime
    oldest: float


class Journal(msgspec.Struct, kw_only=True):
    """One replication as this host knows it.

    ``base`` is the snapshot that source and target both have: what the target is, whatever happens. ``next`` is the snapshot that is on
    its way, ``next_at`` an instant not after it; ``dirty`` says that the target was written to since ``base``. ``stale`` are snapshots
    to be dropped. ``degraded_since`` is set before a write is acknowledged with one copy, and cleared when both are the same again; of a
    pair that begins it is set, too. ``size`` is what both halves of a pair have, as they lie in their pools; bytes.
    """

    replication: Replication
    source: Volume
    target: Volume
    made: bool = False
    base: str = ""
    base_at: datetime | None = None
    next: str = ""
    next_at: datetime | None = None
    dirty: bool = False
    stale: list[str] = []
    cycles: int = 0
    moved: int = 0
    took: float = 0.0
    ages: list[Age] = []
    seeded: bool = False
    degraded_since: datetime | None = None
    degraded_why: str = ""
    size: int = 0
    promoted_at: datetime | None = None

    def remember(self, at: datetime, oldest: float) -> None:
        """Keep what the last day was like; of more cycles than can be kept, the worst of each pair."""
        self.ages = [age for age in self.ages if (at - age.at).total_seconds() < 86400]
        self.ages.append(Age(at=at, oldest=oldest))
        if len(self.ages) > _MOST_AGES:
            pairs = zip(self.ages[::2], self.ages[1::2], strict=False)
            odd = self.ages[-1:] if len(self.ages) % 2 else []
            self.ages = [max(pair, key=lambda age: age.oldest) for pair in pairs] + odd


class Fence(msgspec.Struct, kw_only=True):
    """Why a volume is opened for nobody: the sentence and the hint that whoever tries gets."""

    replication: str
    message: str
    hint: str = ""


class Journals:
    """All of one home. Writing blocks until it is on the disk."""

    def __init__(self, home: Home) -> None:
        place = home.state / "storage"
        self.of = Folder(place / "replications")
        self.fences = Folder(place / "fences")

    def check(self, volume: Volume) -> None:
        """:raise Conflict: when *volume* is fenced."""
        fence = self.fences.read(volume.id, Fence)
        if fence is not None:
            raise Conflict(fence.message, hint=fence.hint)
