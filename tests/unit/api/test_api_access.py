"""Who is who, and who may what."""

import grp
import os
import pwd

import pytest

from lamella.api.access import Action, decide
from lamella.api.app import all_routes
from lamella.api.identity import Identity
from lamella.api.routes.resources import ADMINISTERED
from lamella.model.errors import Forbidden, Unauthenticated
from lamella.model.requests import Principal
from lamella.wire.identity import Peer, peer_of_certificate, require


def test_root_and_the_owner_of_the_daemon_administer() -> None:
    identity = Identity(group="no such group")
    assert identity.of(Peer(uid=0, gid=0)) == Principal(name="unix:root", admin=True)
    assert identity.of(Peer(uid=os.geteuid(), gid=12345)).admin


def test_a_user_without_a_name_is_a_number() -> None:
    assert Identity(group="no such group").of(Peer(uid=3_999_999_999, gid=1)).name == "unix:3999999999"


def test_members_of_the_group_administer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", lambda _: grp.struct_group(("lamella", "x", 77, ["anna"])))
    monkeypatch.setattr(
        pwd,
        "getpwuid",
        lambda uid: pwd.struct_passwd((f"{'anna' if uid == 500001 else 'eve'}", "x", uid, 9, "", "", "")),
    )
    identity = Identity()
    assert identity.of(Peer(uid=500001, gid=9)) == Principal(name="unix:anna", admin=True)
    assert identity.of(Peer(uid=500002, gid=9)) == Principal(name="unix:eve", admin=False)
    assert identity.of(Peer(uid=500003, gid=77)).admin, "its process runs with the group"


def test_nothing_proved_is_nobody() -> None:
    with pytest.raises(Unauthenticated):
        Identity().of(None)


@pytest.mark.parametrize("action", set(Action))
def test_only_administrators_do_more_than_ask_which_layer_this_is(action: Action) -> None:
    decide(Principal(name="unix:root", admin=True), action, "default", "instance")
    for other in (Principal(name="unix:eve"), Principal(name="host:alpha", kind="host")):
        if action is Action.ABOUT:
            decide(other, action, None, None)
            continue
        with pytest.raises(Forbidden, match=f"{other.name} may not {action.value} instances in project default"):
            decide(other, action, "default", "instance")


def certificate(*uris: str) -> dict[str, object]:
    return {"subjectAltName": (("DNS", "urn:lamella:host:evil"), *(("URI", uri) for uri in uris))}


def test_a_certificate_names_one_party() -> None:
    assert peer_of_certificate(certificate("urn:lamella:host:alpha")) == Peer(role="host", name="alpha")
    assert Identity().of(Peer(role="host", name="alpha")) == Principal(name="host:alpha", kind="host")


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("urn:lamella:host:alpha", "urn:lamella:control:main"),
        ("urn:lamella:admin:x",),
        ("urn:lamella:host:alpha\n",),
        ("urn:lamella:host:",),
        ("xurn:lamella:host:alpha",),
    ],
)
def test_a_certificate_of_another_kind_names_nobody(uris: tuple[str, ...]) -> None:
    assert peer_of_certificate(certificate(*uris)) is None


def test_a_role_is_asked_for() -> None:
    assert require(Peer(role="control", name="main"), "control") == "main"
    for peer in (None, Peer(uid=0, gid=0), Peer(role="host", name="alpha")):
        with pytest.raises(Forbidden):
            require(peer, "control")


def test_what_holds_everybody_s_data_is_for_administrators() -> None:
    routes = all_routes()
    changing = {route.name: route.action for route in routes if route.kind in ADMINISTERED and route.method != "GET"}
    assert {"deleteBackup", "patchRepository", "deletePolicy", "createRepository", "restoreBackup"} <= changing.keys()
    assert set(changing.values()) == {Action.ADMINISTER}
    # It opens a file of the host as root.
    assert next(route.action for route in routes if route.name == "importVolume") is Action.ADMINISTER
