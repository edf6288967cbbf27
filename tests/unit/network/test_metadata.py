"""What instances are told of themselves, in which words they may ask, and how long a token is good."""

import json
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.network.driver import DesiredNetwork, DesiredPort, Resident
from lamella.host.network.services import tokens
from lamella.host.network.services.metadata import Answer, Request, answer
from lamella.host.network.services.speaking import parse, written
from lamella.model.ids import new_id

KEY = b"k" * 32
NETWORK = DesiredNetwork(id=new_id("network"), name="front", subnet="10.9.0.0/24", gateway="10.9.0.1", mtu=1400)
PORT = DesiredPort(id=new_id("port"), network=NETWORK.id, address="10.9.0.7/24", mac="02:00:00:00:00:07", publish=[])
W1 = Resident(
    port=PORT,
    name=("w_1",),
    instance=new_id("instance"),
    project="shop",
    hostname="w-1",
    image="sha256:abc",
    isolation="vm",
    ssh_keys=["ssh-ed25519 AAAA one", "ssh-ed25519 AAAA two"],
    user_data="#cloud-config\n{}\n",
)
OTHER = Resident(port=PORT, name=("w2",), instance="other")


def ask(path: str, method: str = "GET", *, resident: Resident = W1, now: int = 1000, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(Request(method=method, path=path, headers=named), NETWORK, resident, KEY, now)


def test_ec2_tells_what_clients_walk_through() -> None:
    """As cloud-init's ec2 helper does: a list, what ends with a slash below it, and keys by number."""
    found: dict[str, str] = {}

    def walk(path: str) -> None:
        for name in ask(path).body.split("\n"):
            if name.endswith("/"):
                walk(path + name)
            elif "=" in name:
                number = name.partition("=")[0]
                found[f"{path}{number}"] = ask(f"{path}{number}/openssh-key").body
            else:
                found[path + name] = ask(path + name).body

    top = "/2009-04-04/meta-data/"
    walk(top)
    assert found[f"{top}instance-id"] == W1.instance and found[f"{top}local-ipv4"] == "10.9.0.7"
    assert found[f"{top}hostname"] == found[f"{top}local-hostname"] == "w-1"
    assert found[f"{top}public-keys/0"] == W1.ssh_keys[0] and found[f"{top}public-keys/1"] == W1.ssh_keys[1]
    below = f"{top}network/interfaces/macs/{PORT.mac}/"
    assert found[f"{below}subnet-ipv4-cidr-block"] == NETWORK.subnet
    assert found[f"{below}local-hostname"] == "w-1.front.internal"
    assert ask("/latest/user-data").body == W1.user_data
    assert json.loads(ask("/latest/dynamic/instance-identity/document").body)["privateIp"] == "10.9.0.7"
    assert "latest/" in ask("/").body.split("\n") and ask("/latest").body == ask("//latest/").body
    # None is not the same as an empty one.
    assert ask("/latest/user-data", resident=OTHER).status == 404
    assert ask("/latest/meta-data/public-keys/", resident=OTHER).status == 404
    for path in ("/latest/meta-data/nothing", "/latest/user-data/more", "/1999-01-01/", "/latest/../nocloud"):
        assert ask(path).status == 404


def test_nocloud_tells_the_same_as_yaml() -> None:
    meta = yaml.safe_load(ask("/nocloud/meta-data").body)
    assert meta == {"instance-id": W1.instance, "local-hostname": "w-1", "public-keys": W1.ssh_keys}
    network = yaml.safe_load(ask("/nocloud/network-config").body)
    assert network["ethernets"]["eth0"]["addresses"] == ["10.9.0.7/24"]
    assert ask("/nocloud/user-data").body == W1.user_data and ask("/nocloud/vendor-data").body == ""


def test_a_token_is_asked_for_and_then_good() -> None:
    made = ask("/latest/api/token", "PUT", x_aws_ec2_metadata_token_ttl_seconds="60")
    assert made.status == 200 and made.headers["x-aws-ec2-metadata-token-ttl-seconds"] == "60"
    assert ask("/latest/user-data", x_aws_ec2_metadata_token=made.body, now=1059).status == 200
    assert ask("/latest/user-data", x_aws_ec2_metadata_token=made.body, now=1060).status == 401
    assert ask("/latest/user-data", x_aws_ec2_metadata_token="made up").status == 401
    for ttl in ("0", "21601", "-1", "", "x", "٣"):
        assert ask("/latest/api/token", "PUT", x_aws_ec2_metadata_token_ttl_seconds=ttl).status == 400
    assert ask("/latest/api/token", "PUT").status == 400
    proxied = ask("/latest/api/token", "PUT", x_aws_ec2_metadata_token_ttl_seconds="60", x_forwarded_for="203.0.113.1")
    assert proxied.status == 403
    assert ask("/latest/api/token").status == 405 and ask("/latest/user-data", "POST").status == 405


@given(st.binary(min_size=1, max_size=32), st.integers(0, 1 << 40), st.integers(1, tokens.LONGEST), st.integers(-9, 9))
def test_tokens_are_good_for_one_port_until_they_end(key: bytes, now: int, seconds: int, later: int) -> None:
    token = tokens.issue(key, PORT.id, now, seconds)
    when = max(0, now + seconds + later)
    assert tokens.good(key, PORT.id, when, token) == (when < now + seconds)
    assert not tokens.good(key, new_id("port"), now, token) and not tokens.good(key + b"x", PORT.id, now, token)


@given(st.text(max_size=60))
def test_no_text_is_a_token(text: str) -> None:
    assert not tokens.good(KEY, PORT.id, 0, text)


@given(st.binary(max_size=200))
def test_whatever_is_said_is_a_request_or_none(data: bytes) -> None:
    with suppress(ValueError):
        request = parse(data + b"\r\n\r\n")
        assert request.path.startswith("/")
        assert b"\r\n\r\n" in written(answer(request, NETWORK, W1, KEY, 0), body=True)


def test_requests_are_read_as_they_are_written() -> None:
    request = parse(b"GET /latest/ HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Empty:\r\n\r\n")
    assert request == Request(method="GET", path="/latest/", headers={"host": "169.254.169.254", "x-empty": ""})
    for bad in (b"GET /\r\n\r\n", b"GET x HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", b"\xff\r\n\r\n"):
        with pytest.raises(ValueError):
            parse(bad)
    assert written(Answer(status=404, body="x"), body=False).startswith(b"HTTP/1.1 404 Not Found\r\n")
