"""Whatever a stranger's tar says: it is unpacked, or refused with a sentence, and nothing outside is touched."""

import os
import shutil
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tarballs import folder, hardlink, member, names, symlink, tar

from lamella.host.images.content import remove
from lamella.host.images.tape import Bounds, Intake, Tape, decompress
from lamella.host.images.unpack import unpack
from lamella.model.errors import LamellaError

pytestmark = pytest.mark.root

NAMES = st.sampled_from(
    [
        "a",
        "b",
        "a/b",
        "a/b/c",
        "./a",
        "/a",
        "..",
        "../x",
        "a/../../x",
        "b/a",
        "c",
        "c/a",
        ".",
        "a/.wh.b",
        ".wh.a",
        "a/.wh..wh..opq",
        "d" * 150,
        "../../victim",
    ]
)
TARGETS = st.sampled_from(
    ["a", "b", "..", "/", "/a", "../../victim", "../../../../../../etc", "a/b", "c", ".", "/etc/passwd"]
)
MEMBERS = st.lists(
    st.one_of(
        st.builds(member, NAMES, st.binary(max_size=1500), mode=st.integers(0, 0o7777), uid=st.integers(0, 70000)),
        st.builds(folder, NAMES, mode=st.integers(0, 0o7777)),
        st.builds(symlink, NAMES, TARGETS),
        st.builds(hardlink, NAMES, TARGETS),
        st.builds(member, NAMES, type=st.sampled_from([tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"])),
        st.builds(
            member,
            NAMES,
            st.binary(max_size=10),
            pax_headers=st.dictionaries(
                st.sampled_from(
                    [
                        "path",
                        "linkpath",
                        "size",
                        "uid",
                        "mtime",
                        "SCHILY.xattr.user.x",
                        "SCHILY.xattr.trusted.overlay.redirect",
                    ]
                ),
                st.sampled_from(["0", "5", "-1", "../../victim", "99999999999999999999", "1e400", "nan", "x"]),
                max_size=2,
            ),
        ),
    ),
    max_size=12,
)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    data = bytearray(tar(*draw(MEMBERS), format=draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
        if draw(st.booleans()):  # make the checksum fit, so that the lie is believed
            start = at // 512 * 512
            block = bytearray(data[start : start + 512])
            block[148:156] = b" " * 8
            data[start + 148 : start + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(archives(), st.booleans())
def test_nothing_outside_is_touched(data: bytes, whole: bool) -> None:
    top = Path(tempfile.mkdtemp())
    try:
        victim = top / "victim"
        victim.write_text("untouched")
        work = top / "work"
        (work / "root").mkdir(parents=True)
        (work / "trash").mkdir()
        file = top / "archive"
        file.write_bytes(data)
        before = victim.stat()
        with file.open("rb") as stream:
            bounds = Bounds(entries=100)
            tape = Tape(decompress(Intake(stream), bounds))
            try:
                unpack(tape, work / "root", work / "trash", bounds=bounds, whole=whole, stop=threading.Event())
            except LamellaError as error:
                assert error.message and error.hint
        after = victim.stat()
        assert (before.st_ino, before.st_nlink, before.st_mtime_ns, before.st_mode) == (
            after.st_ino,
            after.st_nlink,
            after.st_mtime_ns,
            after.st_mode,
        )
        assert victim.read_text() == "untouched"
        assert names(top) == ["archive", "victim", "work"] and names(work) == ["root", "trash"]
        for path, _, _ in os.walk(work / "root"):
            assert "trusted.overlay.redirect" not in os.listxattr(path, follow_symlinks=False)
    finally:
        remove(top / "work")
        shutil.rmtree(top)
