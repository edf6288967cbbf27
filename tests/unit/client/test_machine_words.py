"""Keys, devices, keys of SSH and directories as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import ValidationError, convert

from lamella.client import devices, keys, machine
from lamella.model.board import Cdrom, Directory, Disk, Input, Pointer, Usb
from lamella.model.errors import Conflict, Invalid, LamellaError, NotFound, Unsupported
from lamella.model.storage import VolumeMount

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxhbWVsbGE anna@here"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk=\n-----END OPENSSH PRIVATE KEY-----\n"


def test_keys_are_called_as_people_call_them() -> None:
    assert keys.chord("ctrl-alt-delete") == ["ctrl", "alt", "delete"]
    assert keys.chord("Ctrl+Alt+Del") == ["ctrl", "alt", "delete"]
    assert [keys.chord(name) for name in ("enter", "F12", "minus", "win-r")] == [
        ["ret"],
        ["f12"],
        ["minus"],
        ["meta_l", "r"],
    ]


@given(st.text(max_size=40))
def test_any_text_is_a_chord_that_the_api_takes_or_a_sentence(text: str) -> None:
    try:
        chord = keys.chord(text)
    except Invalid as error:
        assert error.hint
    else:
        convert({"keys": [chord]}, Input)


def test_escapes() -> None:
    assert keys.unescape(r"root\n") == "root\n"
    assert keys.unescape(r"C:\\x\tend") == "C:\\x\tend"
    for wrong in (r"\x", "end\\"):
        with pytest.raises(Invalid):
            keys.unescape(wrong)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_what_has_its_backslashes_doubled_is_typed_as_it_is(text: str) -> None:
    assert keys.unescape(text.replace("\\", "\\\\")) == text


@given(st.text(max_size=20) | st.from_regex(r"[0-9.]{1,4},[0-9.]{1,4}(,(left|right|none))?", fullmatch=True))
def test_any_text_is_a_place_that_the_api_takes_or_a_sentence(text: str) -> None:
    try:
        place = keys.click(text)
    except Invalid as error:
        assert error.hint
    else:
        convert(place, Pointer)


def test_places() -> None:
    assert keys.click("0.5,0.25") == {"x": 0.5, "y": 0.25, "buttons": ["left"]}
    assert keys.click("0,1,none") == {"x": 0.0, "y": 1.0, "buttons": []}
    for wrong in ("0.5", "2,0", "nan,0", "0.5,0.5,", "0.5,0.5,fourth"):
        with pytest.raises(Invalid):
            keys.click(wrong)


def test_the_first_disk_without_a_name_is_the_root() -> None:
    gib = 1 << 30
    assert machine.disks(["8GiB"]) == (8 * gib, [])
    assert machine.disks(["8GiB", "1GiB", "2GiB"]) == (
        8 * gib,
        [{"name": "disk1", "size": gib}, {"name": "disk2", "size": 2 * gib}],
    )
    assert machine.disks(["data=1GiB"]) == (None, [{"name": "data", "size": gib}])
    assert machine.disks(["disk1=1GiB", "root=3GiB", "2GiB"]) == (
        3 * gib,
        [{"name": "disk1", "size": gib}, {"name": "disk2", "size": 2 * gib}],
    )
    for wrong in (["much"], ["a=1GiB", "a=2GiB"], ["1GiB", "root=1GiB"], ["root=1GiB", "root=1GiB"]):
        with pytest.raises(Invalid):
            machine.disks(wrong)


def test_usb_devices_as_lsusb_has_them() -> None:
    assert machine.usb("1D6B:0002") == machine.usb("0x1d6b:0x0002") == "1d6b:0002"
    for wrong in ("1d6b", "1d6b:2", "1d6b:000g", "1d6b:0002:1", ""):
        with pytest.raises(Invalid):
            machine.usb(wrong)


def test_directories() -> None:
    assert machine.directory("data:/data", "/home/anna") == {
        "source": "/home/anna/data",
        "target": "/data",
        "read_only": False,
    }
    assert machine.directory("/srv/../etc:/e:ro", "/home")["source"] == "/etc"
    assert machine.directory("/srv:/e:ro", "/home")["read_only"]
    assert machine.directory("a:b:/t", "/home")["source"] == "/home/a:b"
    for wrong in ("data", "data:relative", ":/data", "/data", "a:ro", ""):
        with pytest.raises(Invalid):
            machine.directory(wrong, "/")


@given(st.text(max_size=30))
def test_any_text_is_a_directory_that_the_api_takes_or_a_sentence(text: str) -> None:
    try:
        made = machine.directory(text, "/base")
    except Invalid as error:
        assert error.field == "dir"
    else:
        convert(made, Directory)


def test_public_keys_and_never_a_private_one() -> None:
    options = f'from="10.0.0.0/8",no-pty {PUBLIC}'
    assert machine.public_keys(f"# mine\n\n{PUBLIC}\r\n{options}\n", "id.pub") == [PUBLIC, options]
    with pytest.raises(Invalid, match="private key") as refused:
        machine.public_keys(PRIVATE, "id")
    assert "id.pub" in refused.value.hint
    for wrong in ("", "# nothing\n", "hello world", "ssh-ed25519", PUBLIC + "\nrubbish"):
        with pytest.raises(Invalid):
            machine.public_keys(wrong, "id.pub")


def test_certificates_are_pem() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"
    assert machine.certificate(pem, "db.crt") == pem
    for wrong in ("0\x82", PRIVATE, pem + PRIVATE):
        with pytest.raises(Invalid):
            machine.certificate(wrong, "db.crt")


SPEC: dict[str, object] = {
    "nics": [{"network": "default"}, {"name": "nic1", "network": "back"}],
    "disks": [{"name": "disk1", "size": 1 << 30}],
    "cdroms": [],
}


def test_devices_are_plugged_in_beside_what_is_there() -> None:
    name, patch = devices.attach(SPEC, "disk", {"size": 5})
    assert (name, patch) == ("disk2", {"disks": [{"name": "disk1", "size": 1 << 30}, {"name": "disk2", "size": 5}]})
    assert devices.attach(SPEC, "cdrom", {"image": "x"}, "cd") == ("cd", {"cdroms": [{"name": "cd", "image": "x"}]})
    name, patch = devices.attach(SPEC, "nic", {"network": "default"})
    nics = patch["nics"]
    assert isinstance(nics, list)
    assert (name, len(nics)) == ("nic2", 3)
    with pytest.raises(Conflict):
        devices.attach(SPEC, "usb", {"device": "1d6b:0002"}, "disk1")
    with pytest.raises(Unsupported):
        devices.attach({"nics": []}, "nic", {"network": "default"})


def test_devices_are_taken_out_and_disks_only_with_force() -> None:
    assert devices.detach(SPEC, "nic1", force=False) == ("nic", {"nics": [{"network": "default"}]})
    with pytest.raises(Conflict, match="goes with it"):
        devices.detach(SPEC, "disk1", force=False)
    assert devices.detach(SPEC, "disk1", force=True) == ("disk", {"disks": []})
    for absent in ("root", "nic", "disk2", ""):
        with pytest.raises(NotFound, match="no device") as error:
            devices.detach(SPEC, absent, force=True)
        assert "disk1, nic1" in error.value.hint


_NAME = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


@given(st.lists(st.tuples(st.sampled_from(["disk", "cdrom", "usb", "nic"]), st.none() | _NAME), max_size=12))
def test_what_is_plugged_in_can_be_taken_out_again(wanted: list[tuple[str, str | None]]) -> None:
    spec: dict[str, object] = {"nics": [{"network": "default"}]}
    said: dict[str, dict[str, object]] = {
        "disk": {"size": 1 << 20},
        "cdrom": {"image": "x"},
        "usb": {"device": "1d6b:0002"},
        "nic": {"network": "default"},
    }
    names: list[str] = []
    for kind, name in wanted:
        try:
            made, patch = devices.attach(spec, kind, said[kind], name)
        except LamellaError:
            assert name in names
            continue
        assert made not in names
        names.append(made)
        spec |= patch
    for type, field in ((Disk, "disks"), (Cdrom, "cdroms"), (Usb, "usb")):
        convert(spec.get(field, []), list[type])
    assert sorted(name for _, name, _ in devices.devices(spec)) == sorted(names)
    for name in names:
        spec |= devices.detach(spec, name, force=True)[1]
    assert devices.devices(spec) == []
    assert spec["nics"] == [{"network": "default"}]


def test_a_text_that_is_too_long_for_the_api_is_refused_there() -> None:
    with pytest.raises(ValidationError):
        convert({"text": "x" * 65537}, Input)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("data:/var/lib/x", {"volume": "data", "target": "/var/lib/x", "read_only": False}),
        ("data:/x:ro", {"volume": "data", "target": "/x", "read_only": True}),
        ("data", {"volume": "data", "target": "", "read_only": False}),
        ("data:ro", {"volume": "data", "target": "", "read_only": True}),
        ("data:/a:b", {"volume": "data", "target": "/a:b", "read_only": False}),
    ],
)
def test_volumes_as_people_write_them(text: str, made: dict[str, object]) -> None:
    assert machine.volume(text) == made
    convert(made, VolumeMount)


@pytest.mark.parametrize("text", ["", ":", ":/x", "data:", "data:x", "/srv:/x", "./a:/x", "data:/x\0"])
def test_what_is_no_volume_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        machine.volume(text)
    assert refused.value.hint
