"""What LVM and the thin-provisioning tools say, read into values.

Sources: lvmreport(7) for ``lvs --reportformat json``; lvs(8) for ``lv_attr``; thin_delta(8) and thin_dump(8), whose XML counts in blocks of
``data_block_size`` sectors of 512 bytes.
"""

from xml.etree import ElementTree

import msgspec

from lamella.host.storage.driver import Extent
from lamella.model.errors import Unavailable

COLUMNS = "lv_name,lv_size,lv_attr,data_percent,metadata_percent,origin,pool_lv,thin_id,lv_time,lv_health_status"
_SECTOR = 512


class LogicalVolume(msgspec.Struct, kw_only=True):
    """One line of ``lvs``, sizes in bytes without a unit. ``attributes`` are ten letters of lvs(8)."""

    name: str = msgspec.field(name="lv_name")
    size: str = msgspec.field(name="lv_size")
    attributes: str = msgspec.field(name="lv_attr")
    data_percent: str = ""
    metadata_percent: str = ""
    origin: str = ""
    pool: str = msgspec.field(name="pool_lv", default="")
    thin_id: str = ""
    made: str = msgspec.field(name="lv_time", default="")
    health: str = msgspec.field(name="lv_health_status", default="")

    @property
    def bytes(self) -> int:
        return int(self.size)

    @property
    def taken(self) -> int:
        """Bytes that it has in the pool, those that it shares included."""
        return int(self.bytes * float(self.data_percent or 0) / 100)

    @property
    def is_thin_pool(self) -> bool:
        return self.attributes[:1] == "t"

    @property
    def zeroes(self) -> bool:
        """Of a thin pool: new blocks read as zeros."""
        return self.attributes[7:8] == "z"


class _Section(msgspec.Struct, kw_only=True):
    lv: list[LogicalVolume] = []


class _Report(msgspec.Struct, kw_only=True):
    report: list[_Section] = []


def logical_volumes(text: bytes) -> list[LogicalVolume]:
    """:raise Unavailable: when *text* is not what an ``lvs`` that we know says."""
    try:
        sections = msgspec.json.decode(text, type=_Report).report
    except msgspec.DecodeError as error:
        raise Unavailable(f"the answer of lvs cannot be read: {error}", hint="LVM 2.03 is known") from error
    return [volume for section in sections for volume in section.lv]


def changed(text: bytes) -> list[Extent]:
    """What thin_delta says: blocks that differ, were added, or are gone (zeros)."""
    root = _xml(text)
    block = int(root.get("data_block_size", "0")) * _SECTOR
    found: list[Extent] = []
    for diff in root.iter("diff"):
        for run in diff:
            if run.tag in ("different", "right_only", "left_only"):
                offset, length = int(run.get("begin", "0")) * block, int(run.get("length", "0")) * block
                found.append(Extent(offset=offset, length=length, zero=run.tag == "left_only"))
    return sorted(found, key=lambda extent: extent.offset)


def mapped(text: bytes, thin_id: str) -> list[Extent]:
    """Where volume *thin_id* holds blocks, in what thin_dump says."""
    root = _xml(text)
    block = int(root.get("data_block_size", "0")) * _SECTOR
    found: list[Extent] = []
    for device in root.iter("device"):
        if device.get("dev_id") != thin_id:
            continue
        for run in device:
            if run.tag == "single_mapping":
                found.append(Extent(offset=int(run.get("origin_block", "0")) * block, length=block))
            elif run.tag == "range_mapping":
                length = int(run.get("length", "0")) * block
                found.append(Extent(offset=int(run.get("origin_begin", "0")) * block, length=length))
    return found


def _xml(text: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Unavailable(f"the thin pool's metadata cannot be read: {error}", hint="see thin_check(8)") from error
