"""What the driver reads and writes as text: identities, log lines, the runtime's complaints, signals, conmon's arguments."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Home
from lamella.host.compute.oci import logs, shim
from lamella.host.compute.oci.identity import Identity, look_up, resolve
from lamella.host.compute.oci.layout import LOG_BOUND, Places
from lamella.host.compute.oci.mechanisms import capability_names
from lamella.host.compute.oci.seccomp import ALLOWED, ARCHITECTURES, REFUSED, profile
from lamella.model.errors import CannotRun, Invalid, Unsupported

PASSWD = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n7:x:70:70::/seven:/x\nbad:x:y:z:::\nhuge:x:99999:1::/:/\n"
GROUP = "root:x:0:\nusers:x:100:\nwheel:x:10:bob,ann\naudio:x:29:ann\nbroken:x\n"


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(uid=0, gid=0, groups=[0], home="/root")),
        ("ann", Identity(uid=1000, gid=100, groups=[100, 10, 29], home="/home/ann")),
        ("1000", Identity(uid=1000, gid=100, groups=[100, 10, 29], home="/home/ann")),
        ("ann:wheel", Identity(uid=1000, gid=10, home="/home/ann")),
        ("ann:55", Identity(uid=1000, gid=55, home="/home/ann")),
        ("1234", Identity(uid=1234, gid=0)),
        ("1234:5", Identity(uid=1234, gid=5)),
        (":wheel", Identity(uid=0, gid=10, home="/root")),
        ("7", Identity(uid=70, gid=70, groups=[70], home="/seven")),
    ],
)
def test_users(user: str, identity: Identity) -> None:
    assert resolve(user, PASSWD, GROUP) == identity


@pytest.mark.parametrize("user", ["bob", "bad", "ann:nobody", "70000", "huge", "0:70000", "-1", "ann:-2", "²", "ann:²"])
def test_users_that_are_none(user: str) -> None:
    with pytest.raises(Invalid):
        resolve(user, PASSWD, GROUP)


@given(st.text(max_size=30), st.text(max_size=200), st.text(max_size=200))
def test_a_guests_tables_never_give_an_id_outside(user: str, passwd: str, group: str) -> None:
    try:
        found = resolve(user, passwd, group)
    except Invalid:
        return
    assert all(0 <= number <= 65535 for number in (found.uid, found.gid, *found.groups))
    assert found.home.startswith("/")


def test_tables_are_looked_up_inside_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "passwd").write_text(PASSWD)
    (root / "etc" / "passwd").symlink_to("../../passwd")
    os.mkfifo(root / "etc" / "group")
    fd = os.open(root, os.O_PATH)
    try:
        with pytest.raises(Invalid):
            look_up(fd, "ann")
        (root / "passwd").write_text(PASSWD)
        assert look_up(fd, "ann").uid == 1000
    finally:
        os.close(fd)


@given(
    st.binary(max_size=60).filter(lambda data: b"\n" not in data), st.sampled_from(["stdout", "stderr"]), st.booleans()
)
def test_log_lines(data: bytes, stream: str, whole: bool) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    line = b"2026-01-02T03:04:05.678901234+00:00 " + stream.encode() + (b" F " if whole else b" P ") + data
    entry = logs.parse(line)
    assert entry is not None
    assert (entry.at, entry.stream) == (at, stream)
    assert entry.data == (data + b"\n" if whole else data)


@given(st.binary(max_size=100))
def test_a_broken_log_line_is_skipped(line: bytes) -> None:
    entry = logs.parse(line)
    assert entry is None or entry.stream in ("stdout", "stderr")


def test_a_time_with_an_offset() -> None:
    entry = logs.parse(b"2026-01-02T03:04:05.000000000+02:00 stdout F x")
    assert entry is not None
    assert entry.at.utcoffset() == timedelta(hours=2)
    assert logs.parse(b"2026-01-02T03:04:05.000000000 stdout F x") is None


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("executable file `nope` not found in $PATH: No such file or directory", 127),
        ("open executable: Permission denied", 126),
        ("open executable: Operation not permitted", 126),
        ('runc create failed: exec: "nope": executable file not found in $PATH', 127),
        ('exec: "/etc/passwd": permission denied', 126),
        ("mount `proc` to `proc`: Operation not permitted", None),
        ("", None),
    ],
)
def test_the_runtimes_complaints(said: str, code: int | None) -> None:
    error = shim.refusal(said)
    if code is None:
        assert type(error) is Unsupported
    else:
        assert isinstance(error, CannotRun)
        assert error.exit_code == code
    assert said in str(error)


def test_a_working_directory_is_named() -> None:
    assert shim.refusal("chdir `/nope`: No such file or directory").field == "working_directory"


@pytest.mark.parametrize(("terminal", "stdin"), [(False, False), (False, True), (True, False), (True, True)])
def test_conmons_arguments(terminal: bool, stdin: bool) -> None:
    places = Places(Home(Path("/home"), "lamella-1"))
    tools = shim.Tools(conmon=Path("/usr/bin/conmon"), runtime=Path("/usr/bin/crun"))
    argv = shim.arguments(places.of("inst_1"), places, tools, terminal=terminal, stdin=stdin)
    assert ("--terminal" in argv) == ("--leave-stdin-open" in argv) == terminal
    assert ("--stdin" in argv) == (stdin or terminal)
    assert int(argv[argv.index("--log-size-max") + 1]) == 4 << 20


def test_nothing_is_allowed_and_refused_at_once() -> None:
    assert not set(ALLOWED) & set(REFUSED)
    for name in (
        "mount",
        "bpf",
        "keyctl",
        "unshare",
        "setns",
        "userfaultfd",
        "perf_event_open",
        "kexec_load",
        "io_uring_setup",
    ):
        assert name in REFUSED
    for name in ("clone", "clone3", "personality", "socket"):
        assert name not in {*ALLOWED, *REFUSED}


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_a_profile_for_each_architecture(machine: str) -> None:
    made = profile(machine)
    clone = next(rule for rule in made.syscalls if rule.names == ["clone"])
    assert clone.args[0].index == (1 if machine == "s390x" else 0)
    assert made.default_action == "SCMP_ACT_ERRNO"
    with pytest.raises(Unsupported, match="vax"):
        profile("vax")


@given(st.integers(0, 2**64 - 1))
def test_capabilities_have_names(mask: int) -> None:
    assert len(capability_names(mask)) == mask.bit_count()
    assert capability_names(1 << 21) == ["sys_admin"]


async def test_a_log_that_is_written_faster_than_it_is_read_has_an_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"2026-01-01T00:00:00+00:00 stdout F y\n" * (2 * LOG_BOUND // 37))
    for tail in (None, 1_000_000):
        read = [entry async for entry in logs.entries(log, ended=None, tail=tail)]
        assert LOG_BOUND * 0.9 < 37 * len(read) < LOG_BOUND * 1.1
