"""What the tools of LVM and ZFS say: real output of thin_delta where it runs, else lines as their manuals give them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lamella.host.storage.driver import Extent
from lamella.host.storage.lvm import driver as lvm
from lamella.host.storage.lvm import thin
from lamella.host.storage.nfs import mount_command
from lamella.host.storage.rbd.images import extents, with_growth
from lamella.host.storage.zfs import driver as zfs
from lamella.host.storage.zfs import tables
from lamella.model.errors import Unavailable, Unsupported

BLOCK = 128 * 512
METADATA = """\
<superblock uuid="" time="1" transaction="3" version="2" data_block_size="128" nr_data_blocks="1024">
  <device dev_id="1" mapped_blocks="5" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="4" time="0"/>
    <single_mapping origin_block="10" data_block="4" time="0"/>
  </device>
  <device dev_id="2" mapped_blocks="5" transaction="1" creation_time="1" snap_time="1">
    <single_mapping origin_block="0" data_block="0" time="0"/>
    <range_mapping origin_begin="1" data_begin="6" length="2" time="1"/>
    <single_mapping origin_block="3" data_block="3" time="0"/>
    <single_mapping origin_block="20" data_block="9" time="1"/>
  </device>
</superblock>
"""
# lvs --reportformat json, lvmreport(7).
LVS = b"""{"report": [{"lv": [
{"lv_name":"pool","lv_size":"1073741824","lv_attr":"twi-aotz--","data_percent":"25.00","metadata_percent":"11.04","origin":"","pool_lv":"",
"thin_id":"","lv_time":"2026-11-21 10:00:00 +0000","lv_health_status":""}]}]}"""
# zpool-status(8), Example 16 and "Permanent errors".
STATUS = """\
  pool: tank
  scan: scrub repaired 128K in 00:00:01 with 1 errors on Sat Nov 21 10:00:00 2026
config:
\tNAME        STATE     READ WRITE CKSUM
\ttank        ONLINE       0     0     0
\t  mirror-0  ONLINE       0     0     0
\t    sda     ONLINE       0     0     0
errors: Permanent errors have been detected in the following files:

        tank/lamella/vol:<0x1>
"""


@pytest.mark.skipif(shutil.which("thin_restore") is None, reason="thin-provisioning-tools are not installed")
def test_deltas_of_real_thin_metadata(tmp_path: Path) -> None:
    (tmp_path / "xml").write_text(METADATA)
    with (tmp_path / "meta").open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["thin_restore", "-i", tmp_path / "xml", "-o", tmp_path / "meta"], check=True, capture_output=True)
    delta = ["thin_delta", "--snap1", "1", "--snap2", "2", str(tmp_path / "meta")]
    assert thin.changed(subprocess.run(delta, check=True, capture_output=True).stdout) == [
        Extent(offset=BLOCK, length=2 * BLOCK),
        Extent(offset=10 * BLOCK, length=BLOCK, zero=True),
        Extent(offset=20 * BLOCK, length=BLOCK),
    ]
    dump = subprocess.run(["thin_dump", "--dev-id", "1", tmp_path / "meta"], check=True, capture_output=True)
    assert thin.mapped(dump.stdout, "1") == [
        Extent(offset=0, length=4 * BLOCK),
        Extent(offset=10 * BLOCK, length=BLOCK),
    ]


def test_logical_volumes_are_read() -> None:
    (pool,) = thin.logical_volumes(LVS)
    assert pool.is_thin_pool and pool.zeroes and pool.taken == 1 << 28
    with pytest.raises(Unavailable):
        thin.logical_volumes(b"nonsense")


def test_what_zfs_says_is_read() -> None:
    line = "tank/l/v\tvolume\t56320\t1073741824\t-\t-\ttank/l/b@ready\t1795255200"
    (volume,) = tables.datasets(line)
    assert (volume.kind, volume.size, volume.origin, volume.mountpoint) == ("volume", 1 << 30, "tank/l/b@ready", "")
    assert tables.redundant(STATUS) and tables.repaired(STATUS) == "128K"
    assert tables.permanent_errors(STATUS) == ["tank/lamella/vol:<0x1>"]


def test_an_rbd_difference_joins_neighbours() -> None:
    text = (
        b'[{"offset":4096,"length":4096,"exists":"true"},{"offset":0,"length":4096,"exists":true},'
        b'{"offset":8192,"length":1,"exists":"false"}]'
    )
    assert extents(text) == [Extent(offset=0, length=8192), Extent(offset=8192, length=1, zero=True)]


def test_what_an_rbd_volume_gained_is_in_the_difference() -> None:
    first, last = Extent(offset=2, length=4), Extent(offset=7, length=1)
    assert with_growth([first], 8, 8) == with_growth([first], 8, 4) == [first]
    assert with_growth([], 0, 4) == [Extent(offset=0, length=4, zero=True)]
    gained = [Extent(offset=6, length=1, zero=True), Extent(offset=8, length=2, zero=True)]
    assert with_growth([first, last], 4, 10) == [first, gained[0], last, gained[1]]


@pytest.mark.skipif(shutil.which("mount.nfs") is None, reason="nfs-common is not installed")
def test_nfs_is_mounted_hard() -> None:
    words = mount_command("host:/export", Path("/mnt"), {"options": "nconnect=4"})
    assert words[1:] == ["host:/export", "/mnt", "-o", "hard,nosuid,nodev,vers=4.2,nconnect=4"]


@pytest.mark.parametrize("driver", [lvm, zfs])
async def test_a_kernel_without_it_is_told(driver: object) -> None:
    reason = driver.missing()  # type: ignore[attr-defined]
    if not reason:
        pytest.skip("this kernel has it")
    make = getattr(driver, "LvmDriver", None) or driver.ZfsDriver  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match=r"this kernel has no|not installed"):
        await make(Path("tank/lamella")).open()
