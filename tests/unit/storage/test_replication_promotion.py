"""When a replica may take its source's place, and what may not be done meanwhile."""

import pytest

from lamella.host.storage.driver import Node
from lamella.host.storage.process.nodes import names, stays_raw
from lamella.host.storage.replication.guard import refuse
from lamella.host.storage.replication.journal import Journal
from lamella.host.storage.replication.promotion import Known, check
from lamella.host.storage.replication.server import both, no_reads, sink
from lamella.model.errors import Conflict
from lamella.model.replication import ReplicationMode, ReplicationSpec, ReplicationStatus
from lamella.model.resource import new_resource, now
from lamella.model.storage import SnapshotSpec, SnapshotStatus, VolumeSpec, VolumeStatus
from lamella.model.storage_requests import DeleteVolume, MeasureVolumes, ResizeVolume, TakeSnapshot

SAFE = Known(whole=True, reachable=True, open=False, newer=False)


def verdict(known: Known, *, force: bool = False) -> str:
    try:
        check(known, name="data", age="3 s", force=force)
    except Conflict as error:
        return error.message
    return ""


def test_nothing_is_lost_without_force() -> None:
    assert verdict(SAFE) == ""
    for worse, word in (
        ({"newer": True}, "does not have"),
        ({"newer": None}, "does not have"),
        ({"reachable": False, "newer": None}, "does not answer"),
        ({"degraded": True}, "does not have"),
    ):
        known = Known(**{"whole": True, "reachable": True, "open": False, "newer": False, **worse})
        assert word in verdict(known)
        assert verdict(known, force=True) == ""


def test_force_takes_nothing_from_under_a_writer_and_makes_no_copy() -> None:
    assert "open" in verdict(Known(whole=True, reachable=True, open=True, newer=True), force=True)
    assert "no whole copy" in verdict(Known(whole=False, reachable=True, open=False, newer=False), force=True)
    # A pool that is gone has no writer that could be asked to stop.
    assert verdict(Known(whole=True, reachable=False, open=True, newer=None), force=True) == ""


@pytest.mark.parametrize("mode", list(ReplicationMode))
def test_source_and_replica_are_not_taken_apart(mode: ReplicationMode) -> None:
    source = new_resource("volume", "data", VolumeSpec(), VolumeStatus())
    target = new_resource("volume", "data-replica", VolumeSpec(pool="far"), VolumeStatus())
    other = new_resource("volume", "other", VolumeSpec(), VolumeStatus())
    spec = ReplicationSpec(volume=source.id, target=target.id, pool="far", mode=mode)
    known = Journal(
        replication=new_resource("replication", "data", spec, ReplicationStatus()), source=source, target=target
    )
    snapshot = new_resource("snapshot", "now", SnapshotSpec(), SnapshotStatus())
    take = TakeSnapshot(snapshot=snapshot, volumes=[source])
    with pytest.raises(Conflict, match="replica of data"):
        refuse(ResizeVolume(volume=target, size=1), [known])
    with pytest.raises(Conflict, match="cannot be removed"):
        refuse(DeleteVolume(volume=source), [known])
    refuse(DeleteVolume(volume=other), [known])
    refuse(MeasureVolumes(volumes=[target]), [known])
    refuse(take, [known])
    refuse(ResizeVolume(volume=source, size=1), [known])
    with pytest.raises(Conflict, match="replica of data"):
        refuse(TakeSnapshot(snapshot=snapshot, volumes=[target]), [known])
    known.promoted_at = now()
    refuse(DeleteVolume(volume=source), [known])
    refuse(ResizeVolume(volume=target, size=1), [known])


def test_a_write_needs_both_and_a_read_never_comes_from_the_replica() -> None:
    node = both({"driver": "raw"}, "/run/x/nbd", 1 << 20)
    assert (node["driver"], node["vote-threshold"], node["read-pattern"]) == ("quorum", 2, "fifo")
    assert node["children"][0] == {"driver": "raw"}
    replica = node["children"][1]
    assert (replica["driver"], replica["size"]) == ("raw", 1 << 20), "both are as large, whatever the replica's file is"
    assert replica["file"]["reconnect-delay"] > 86400
    # Its layers are the volume's own, it may be closed and opened like them, and it lets go of nothing.
    below: Node = {"driver": "qcow2", "file": {"driver": "file", "filename": "/x"}}
    assert names("vol_1", below) < names("vol_1", both(below, "/run/x/nbd", 1 << 20))
    assert not stays_raw(both({"driver": "raw", "file": {"driver": "rbd"}}, "/run/x/nbd", 1 << 20))
    served = no_reads(sink(1 << 20))
    assert served["image"] == {"driver": "null-co", "size": 1 << 20}
    assert served["inject-error"][0]["iotype"] == "read"
