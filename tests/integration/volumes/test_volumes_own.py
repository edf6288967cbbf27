"""Instances' own disks, which go with them."""

from typing import Any, cast

import pytest
from volumes_lab import MIB, VolumesLab, new_volume

from lamella.host.assembly import Assembly


@pytest.mark.parametrize("shred", [True, False])
async def test_an_own_disk_is_overwritten_when_its_spec_says_so(
    lab: VolumesLab, monkeypatch: pytest.MonkeyPatch, shred: bool
) -> None:
    volume = new_volume("root", MIB, owner="inst_one", shred=shred)
    pool, said = lab.wing.pool("default"), list[bool]()
    await pool.create(volume.id, volume.spec.form, volume.spec.size)
    delete = pool.delete

    async def heard(id: str, *, shred: bool = False) -> None:
        said.append(shred)
        await delete(id, shred=shred)

    monkeypatch.setattr(pool, "delete", heard)
    nobody = cast("Any", None)
    await Assembly("inst_one", library=nobody, network=nobody, storage=lab.wing).delete([volume])
    assert said == [shred]
    assert await pool.inventory() == set()
