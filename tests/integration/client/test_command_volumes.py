"""``volume``, ``snapshot``, ``pool`` and ``fsck`` as a person types them, and the library's two faces, over real control and API."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_layer import StorageServed

from lamella.client.aio.layer import connect as connect_async
from lamella.client.blocking.layer import connect
from lamella.model.errors import Conflict, Invalid, NotFound, Unsupported


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageServed]:
    """A layer that nothing is changed in."""
    made = StorageServed(tmp_path_factory.mktemp("calm"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[StorageServed]:
    made = StorageServed(tmp_path)
    made.start()
    yield made
    made.stop()


def shown(served: StorageServed, kind: str, name: str) -> dict[str, object]:
    return json.loads(served.out(kind, "show", name, "-o", "json"))


def test_the_issue_s_own_words(served: StorageServed, tmp_path: Path) -> None:
    assert served.out("pool", "create", "fast", "--driver", "directory", "--path", "/srv/fast") == "fast\n"
    asked = ("--pool", "fast", "--size", "20GiB", "--iops", "2000", "--bandwidth", "100MiB/s", "--encrypt")
    done = served.lamella("volume", "create", "data", *asked)
    assert done.returncode == 0 and done.stdout == b"data\n"
    assert b"warning: 20GiB are promised, and pool fast has 10GiB free" in done.stderr
    spec = shown(served, "volume", "data")["spec"]
    assert spec["limits"]["iops"] == 2000 and spec["limits"]["bandwidth"] == 100 << 20
    assert (spec["encryption"], spec["filesystem"], spec["size"]) == ("key-file", "ext4", 20 << 30)
    table = served.out("volume", "ls")
    assert "2000 iops 100MiB/s" in table and "key-file" in table and "20GiB" in table
    assert served.out("snapshot", "create", "data", "nightly") == "data@nightly\n"
    assert served.out("volume", "create", "test", "--from", "data@nightly") == "test\n"
    assert "crash" in served.out("snapshot", "ls")
    assert served.out("volume", "resize", "data", "+20GiB") == "data\n"
    assert shown(served, "volume", "data")["status"]["size"] == 40 << 30
    assert served.out("create", "--name", "db", "--volume", "data:/var/lib/postgresql", "box") == "db\n"
    assert shown(served, "volume", "data")["status"]["attached"] == [
        json.loads(served.out("show", "db", "-o", "json"))["id"]
    ]
    assert "db" in served.out("volume", "ls")
    assert (
        served.out("snapshot", "create", "db", "before-upgrade", "--instance", "--consistent") == "db@before-upgrade\n"
    )
    assert served.out("snapshot", "restore", "db@before-upgrade") == "db@before-upgrade\n"
    assert served.out("volume", "detach", "data") == "data\n"
    assert served.out("volume", "rename", "data", "moved") == "moved\n"
    assert served.out("snapshot", "ls", "moved", "-q") == "moved@nightly\n"
    assert served.out("volume", "set", "moved", "--iops", "none", "-l", "tier=hot") == "moved\n"
    assert shown(served, "volume", "moved")["spec"]["limits"]["iops"] is None
    assert served.out("volume", "ls", "-l", "tier=hot", "-q") == "moved\n"
    assert served.out("volume", "rm", "test") == "test\n"
    assert "has 2 snapshots" in served.fails("volume", "rm", "moved")
    assert served.out("rm", "db") == "db\n"
    assert served.out("volume", "rm", "--force", "moved") == "moved\n"
    assert "nothing found" in served.out("fsck")
    assert "nothing found" in served.out("pool", "scrub", "fast")
    assert served.out("pool", "rm", "fast") == "fast\n"
    assert served.out("volume", "ls", "-q") == ""
    assert "default" in served.out("--project", "team", "pool", "ls")


def test_a_passphrase_is_shown_to_nobody(served: StorageServed, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    served.out("volume", "create", "data", "--size", "1GiB", "--passphrase-file", str(secret))
    [id] = served.host.volumes
    assert served.host.passphrases[id] == "correct horse"
    assert "horse" not in served.out("volume", "show", "data", "-o", "json") + served.out("events", "-o", "json")
    served.out("volume", "unlock", "data", input=b"correct horse\n")
    assert "does not open" in served.lamella("volume", "unlock", "data", input=b"wrong\n").stderr.decode()
    new = tmp_path / "new"
    new.write_text("battery staple")
    files = ("--passphrase-file", str(secret), "--new-passphrase-file", str(new))
    served.out("volume", "rekey", "data", *files)
    assert served.host.passphrases[id] == "battery staple"
    served.out("volume", "rekey", "data", "--tpm", "--passphrase-file", str(new))
    assert shown(served, "volume", "data")["spec"]["encryption"] == "tpm"
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("lamella.db*"))
    assert b"correct horse" not in stored and b"battery staple" not in stored


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("volume", "create", "data"), "needs a size"),
        (("volume", "create", "data", "--size", "lots"), "lots"),
        (("volume", "create", "Data!", "--size", "1GiB"), "Data!"),
        (("volume", "create", "data", "--size", "1GiB", "--pool", "absent"), "no pool is called 'absent'"),
        (("volume", "create", "data", "--size", "1GiB", "--bandwidth", "fast"), "fast"),
        (("volume", "create", "data", "--size", "1GiB", "--iops", "0"), "iops"),
        (("volume", "create", "data", "--size", "1GiB", "--encrypt", "--tpm"), "choose one"),
        (("volume", "create", "data", "--from", "absent@x"), "absent@x"),
        (("volume", "create", "data", "--form", "filesystem", "--iops", "5"), "directory tree"),
        (("volume", "set", "absent", "--iops", "5"), "lamella volume create absent"),
        (("volume", "set", "data"), "nothing to change"),
        (("volume", "resize", "absent", "5GiB"), "absent"),
        (("volume", "attach", "absent", "box:/x"), "absent"),
        (("volume", "detach", "absent"), "absent"),
        (("volume", "unlock", "absent", "--passphrase-file", "/no/such/file"), "/no/such/file"),
        (("volume", "rm", "absent"), "absent"),
        (("snapshot", "create", "absent", "x"), "absent"),
        (("snapshot", "create", "default", "a@b"), "a@b"),
        (("snapshot", "rm", "absent"), "data@nightly"),
        (("snapshot", "restore", "absent@x"), "absent@x"),
        (("pool", "create", "odd", "--driver", "floppy"), "floppy"),
        (("pool", "create", "odd", "--warn-below", "often"), "often"),
        (("pool", "rm", "default"), "default stays"),
        (("pool", "rm", "absent"), "absent"),
        (("pool", "scrub", "absent"), "absent"),
        (("run", "--volume", "absent:/x", "box"), "lamella volume create absent"),
        (("run", "--volume", "/srv:/x", "box"), "is a path"),
        (("run", "--volume", "data:x", "box"), "data:x"),
        (("create", "--volume", "data", "box"), "--volume data:/PATH"),
        (("create", "--volume", "data:/", "box"), "root"),
    ],
)
def test_bad_input_is_a_sentence(calm: StorageServed, words: tuple[str, ...], says: str) -> None:
    assert says in calm.fails(*words)
    assert calm.out("volume", "ls", "--all", "-q") == calm.out("snapshot", "ls", "-q") == ""


def test_a_second_writer_is_told_who_the_first_is(served: StorageServed) -> None:
    served.out("volume", "create", "data", "--size", "1GiB")
    served.out("create", "--name", "one", "--volume", "data:/data", "box")
    said = served.fails("create", "--name", "two", "--volume", "data:/data", "box")
    assert "attached to one" in said and "lamella volume detach data one" in said
    assert "attached to one" in served.fails("volume", "rm", "data")
    served.out("rm", "one")
    served.out("create", "--name", "two", "--volume", "data:/data:ro", "box")


def test_what_goes_wrong_on_the_way_is_told(served: StorageServed) -> None:
    served.out("volume", "create", "data", "--size", "8GiB")
    assert "would not fit" in served.fails("volume", "resize", "data", "1GiB")
    served.host.volumes.clear()
    done = served.lamella("fsck")
    assert done.returncode == 1 and b"volume data" in done.stdout and b"1 findings" in done.stdout
    assert json.loads(served.lamella("fsck", "-o", "json").stdout)["findings"][0]["subject"] == "volume data"


def test_the_library_blocks(served: StorageServed) -> None:
    with connect(served.url) as layer:
        layer.pools.create("fast", path="/srv/fast", warn_below=0.2)
        made = layer.volumes.create("data", size="4GiB", pool="fast", iops=100, bandwidth="1MiB/s", labels={"a": "b"})
        assert made.status.size == 4 << 30 and made.spec.limits.bandwidth == 1 << 20 and made.spec.filesystem == "ext4"
        assert [item.name for item in layer.volumes.list()] == ["data"]
        assert layer.volumes.set("data", iops=None).spec.limits.iops is None
        steps: list[str] = []
        assert (
            layer.volumes.resize("data", "8GiB", progress=lambda status: steps.append(status.phase)).status.size
            == 8 << 30
        )
        assert steps[-1] == "done"
        with pytest.raises(Unsupported):
            layer.volumes.resize("data", 1 << 30)
        assert layer.snapshots.create("data", "nightly").name == "data@nightly"
        assert layer.volumes.create("test", source="data@nightly").spec.pool == "fast"
        layer.volumes.create("now", source="data")
        assert len(layer.snapshots.list()) == 1 and len(layer.snapshots.list(all=True)) == 2
        layer.snapshots.restore("data@nightly")
        box = layer.instances.create("box", name="db", start=False, volumes={"data": "/var/lib/x"})
        assert layer.volumes.get("data").status.attached == [box.id]
        assert len(layer.volumes.list(all=True)) == 4
        with pytest.raises(Conflict, match="attached to db"):
            layer.instances.create("box", start=False, volumes=["data:/x"])
        layer.volumes.detach("data", "db")
        layer.volumes.attach("data", "db", "/y", read_only=True)
        assert layer.instances.get("db").instance.spec.volumes[0].target == "/y"
        box.remove()
        assert layer.volumes.rename("data", "moved").name == "moved"
        with pytest.raises(Conflict):
            layer.volumes.remove("moved")
        for name in ("now", "test"):
            layer.volumes.remove(name)
        layer.volumes.remove("moved", force=True)
        assert layer.fsck().findings == [] and layer.pools.scrub("fast").findings == []
        layer.pools.remove("fast")
        with pytest.raises(NotFound):
            layer.pools.get("fast")
        with pytest.raises(Invalid):
            layer.volumes.create("bad", size="much")


def test_the_library_waits_not(served: StorageServed) -> None:
    async def all() -> None:
        async with connect_async(served.url) as layer:
            await asyncio.gather(*(layer.volumes.create(f"v{number}", size="1GiB") for number in range(8)))
            await asyncio.gather(*(layer.snapshots.create(f"v{number}", "a") for number in range(8)))
            assert len(await layer.volumes.list()) == len(await layer.snapshots.list()) == 8
            assert (await layer.volumes.resize("v0", "2GiB")).status.size == 2 << 30
            await layer.volumes.create("secret", size="1GiB", passphrase="words")
            await layer.volumes.unlock("secret", "words")
            assert (await layer.volumes.rekey("secret", "tpm", passphrase="words")).spec.encryption == "tpm"
            await asyncio.gather(*(layer.snapshots.remove(f"v{number}@a") for number in range(8)))
            await asyncio.gather(*(layer.volumes.remove(f"v{number}") for number in range(8)))
            assert (await layer.fsck(repair=True)).checked == 1

    asyncio.run(all())


def test_the_library_keeps_backups(served: StorageServed) -> None:
    with connect(served.url) as layer:
        made = layer.repositories.create("vault", "/mnt/usb")
        assert made.recovery_key and layer.repositories.get("vault").spec.url == "/mnt/usb"
        layer.volumes.create("data", size="1GiB")
        served.host.volumes[layer.volumes.get("data").id]["data"] = b"first"
        steps: list[str] = []
        [backup] = layer.backups.create("data", "vault", progress=lambda status: steps.append(status.phase))
        assert steps[-1] == "done" and backup.spec.volume_name == "data"
        assert [item.name for item in layer.backups.list()] == [backup.name]
        assert len(layer.backups.list(all=True)) == 2 and layer.backups.list("absent") == []
        assert layer.backups.restore("data", "copy") == "copy"
        with pytest.raises(Conflict, match="volume data is there"):
            layer.backups.restore(backup.name, "data")
        assert layer.backups.restore(backup.name, "data", force=True) == "data"
        assert layer.backups.mount("data").path and layer.backups.get(backup.name).status.mounted
        with pytest.raises(Conflict, match="mounted"):
            layer.backups.remove(backup.name)
        layer.backups.unmount("data")
        assert layer.repositories.verify("vault", full=True).findings == []
        layer.instances.create("box", name="db", start=False, volumes={"data": "/var/lib/x"})
        whole = layer.backups.create("db", "vault", instance=True)
        assert [item.spec.of for item in whole][-1] == "instance"
        assert layer.backups.restore("db", "db2", instance=True) == "db2"
        assert layer.instances.get("db2").instance.spec.volumes[0].volume == "db2-data"
        policy = layer.policies.set("", "vault", daily=7, weekly=4, verify=0)
        assert (policy.spec.every, policy.spec.keep.weekly, policy.spec.verify_every) == (86400, 4, 0)
        assert layer.policies.set("", "vault", hourly=24, every="2h").spec.every == 7200
        with pytest.raises(Invalid):
            layer.policies.set("", "vault", every="often")
        layer.policies.remove("layer")
        layer.repositories.prune("vault")
        layer.backups.remove(backup.name)
        with pytest.raises(Conflict):
            layer.repositories.remove("vault")
        layer.repositories.remove("vault", force=True)
        assert layer.repositories.list() == layer.backups.list() == layer.policies.list() == []


def test_backups_as_a_person_types_them(served: StorageServed) -> None:
    served.out("backup", "repository", "create", "vault", "--to", "/mnt/usb")
    served.out("volume", "create", "data", "--size", "1GiB")
    [name] = served.out("backup", "create", "data").split()
    assert name in served.out("backup", "ls") and "layer" not in served.out("backup", "ls", "-q")
    assert "layer" in served.out("backup", "ls", "--all", "-q")
    assert name in served.out("backup", "show", "data")
    assert served.out("backup", "restore", "data", "--as", "copy") == "copy\n"
    served.out("create", "--name", "db", "--volume", "data:/x", "box")
    *parts, whole = served.out("backup", "create", "db", "--instance").split()
    assert parts and whole.startswith("db.all-")
    assert served.out("backup", "restore", "db", "--instance", "--as", "db2") == "db2\n"
    assert "instance db2 is there" in served.fails("backup", "restore", "db", "--instance", "--as", "db2")
    assert "but the instance" in served.fails("backup", "restore", whole)
