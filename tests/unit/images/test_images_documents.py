"""References, manifests, challenges and plans of builds: what is read, and what is refused."""

from pathlib import Path

import pytest

from lamella.host.images import debian, manifest
from lamella.host.images.authentication import parse_challenge, read_token
from lamella.host.images.manifest import Descriptor, Index, Manifest, Platform
from lamella.host.images.reference import is_loopback, parse_reference
from lamella.model.errors import Corrupt, Internal, Invalid, Unavailable, Unsupported

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "host", "name", "version", "loopback"),
    [
        ("docker://registry.example.org/app", "registry.example.org", "app", "latest", False),
        ("docker://localhost/team/app:1.2", "localhost", "team/app", "1.2", True),
        ("docker://127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000", "a/b/c", "x", True),
        ("docker://[::1]:5000/a", "[::1]:5000", "a", "latest", True),
        (f"docker://h.example/a:1@{DIGEST}", "h.example", "a", DIGEST, False),
        ("docker://docker.io/debian:12", "registry-1.docker.io", "library/debian", "12", False),
        ("docker://127.0.0.1.example.org/a", "127.0.0.1.example.org", "a", "latest", False),
    ],
)
def test_references(text: str, host: str, name: str, version: str, loopback: bool) -> None:
    reference = parse_reference(text)
    assert (reference.host, reference.name, reference.version, reference.loopback) == (host, name, version, loopback)
    assert reference.digest == (DIGEST if version == DIGEST else "")


@pytest.mark.parametrize(
    "text",
    ["debian:12", "docker://debian:12", "docker://library/debian", "docker://h.example/../a", "docker://h.example/A", "docker://h.example/a@md5:1",
     "docker://h.example/a\n", "docker://user@h.example/a", "docker://h.example/a b", "https://h.example/a", "docker:///a", "docker://h.example/a:"],
)  # fmt: skip
def test_no_references(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_reference(text)
    assert "docker://registry.example.org" in refused.value.hint


def test_loopback_is_nobody_else() -> None:
    assert all(map(is_loopback, ("localhost", "x.localhost", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("localhost.example.org", "10.0.0.1", "0.0.0.0", "127.0.0.1.nip.example")))


def descriptor(architecture: str | None, digit: str) -> Descriptor:
    platform = Platform(architecture=architecture, os="linux") if architecture else None
    return Descriptor(digest=f"sha256:{digit * 64}", size=1, platform=platform)


def test_choice_of_architecture() -> None:
    ours = manifest.architecture()
    mixed = [descriptor("s390x", "1"), descriptor(ours, "2"), descriptor("unknown", "3")]
    assert manifest.choose(mixed, "it") == [mixed[1]]
    assert manifest.choose([descriptor(None, "4")], "it")[0].digest == f"sha256:{'4' * 64}"
    with pytest.raises(Unsupported, match="only for linux/s390x"):
        manifest.choose(mixed[:1], "it")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", Corrupt),
        (b"[]", Corrupt),
        (b"{}", Corrupt),
        (b"\xff", Corrupt),
        (b"[" * 100_000, Corrupt),
        (b'{"schemaVersion": 1, "fsLayers": []}', Unsupported),
        (
            b'{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"%s","size":1},"layers":[]}',
            Unsupported,
        ),
        (b'{"schemaVersion":2,"config":{"digest":"%s","size":-1},"layers":[]}', Corrupt),
        (b'{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1},"layers":[]}', Corrupt),
    ],
)
def test_no_manifests(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        manifest.read_manifest(data.replace(b"%s", DIGEST.encode()), "manifest")


def test_manifest_or_index() -> None:
    made = manifest.configuration_for(DIGEST, ["bash"])
    again = manifest.manifest_for(made, [(DIGEST, 5)])
    found = manifest.read_manifest(again, "manifest")
    assert isinstance(found, Manifest) and found.layers[0].size == 5 and found.config.digest == manifest.digest_of(made)
    assert again == manifest.manifest_for(made, [(DIGEST, 5)])
    config = manifest.image_config(manifest.read_configuration(made, 1))
    assert config.command == ["bash"] and config.environment[0].startswith("PATH=") and config.stop_signal == "SIGTERM"
    assert isinstance(manifest.read_manifest(b'{"schemaVersion":2,"manifests":[]}', "index"), Index)


def test_configuration_with_nulls() -> None:
    """Docker writes null where there is nothing."""
    config = '{"Env":null,"Cmd":null,"Labels":null,"ExposedPorts":null,"User":""}'
    data = f'{{"architecture":"{manifest.architecture()}","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[]}}}}'
    read = manifest.image_config(manifest.read_configuration(data.encode(), 0))
    assert (read.command, read.environment, read.labels, read.working_directory) == ([], [], {}, "/")


def test_challenges() -> None:
    bearer = parse_challenge(
        'Bearer realm="https://auth.example.org/token",service="reg",scope="repository:a/b:pull,push"'
    )
    assert (bearer.scheme, bearer.realm, bearer.service) == ("bearer", "https://auth.example.org/token", "reg")
    assert bearer.scope == "repository:a/b:pull,push"
    assert parse_challenge("basic realm=here").scheme == "basic"
    for unknown in ("", "Negotiate", 'Digest realm="x"'):
        with pytest.raises(Unsupported):
            parse_challenge(unknown)
    assert read_token(b'{"access_token": "t"}') == "t"
    for nothing in (b"", b"{}", b'{"token": ""}', b'{"token": "a\\nb"}', b"\xff"):
        with pytest.raises(Unavailable):
            read_token(nothing)


def test_what_can_be_built() -> None:
    assert debian.release("debian:12") == debian.release("debian:bookworm")
    assert debian.release("debian:13").suite == "trixie"
    for name in ("debian", "debian:", "debian:11", "ubuntu:24.04", "12", "debian:12;true"):
        with pytest.raises(Invalid, match=r"debian:12.*debian:13"):
            debian.release(name)
    assert debian.check_packages(["curl", "libc6:amd64", "g++"])
    for package in ("--option", "a b", "curl;", "", "Curl", "a\n"):
        with pytest.raises(Invalid):
            debian.check_packages([package])


def test_mirror_of_this_host() -> None:
    one_line = "# deb http://no.example/debian x main\ndeb [signed-by=/x] http://mirror.example/debian bookworm main\n"
    deb822 = "Types: deb\nURIs: https://other.example/debian-security/\nSuites: bookworm-security\n"
    assert debian.mirrors([one_line, deb822]) == (
        "http://mirror.example/debian",
        "https://other.example/debian-security",
    )
    assert debian.mirrors(["deb http://vendor.example/apt stable main"]) == (
        "http://deb.debian.org/debian",
        "http://deb.debian.org/debian-security",
    )


def test_command_of_a_build() -> None:
    dump = (
        'APT::Architecture "amd64";\nAcquire::http::Proxy "http://proxy.example:3142";\nAcquire::https "";\n'
        'Acquire::Check-Date "false";\nDPkg::Post-Invoke:: "touch /x";\n'
    )
    options = debian.forwarded(dump)
    assert options == ['Acquire::http::Proxy "http://proxy.example:3142";', 'Acquire::Check-Date "false";']
    command = debian.command(
        debian.release("debian:12"), ["curl", "jq"], Path("/t"), "http://m/debian", "http://m/debian-security", options
    )
    assert command[0] == "mmdebstrap" and "--include=curl,jq" in command
    assert command[-5:] == [
        "bookworm",
        "/t",
        "deb http://m/debian bookworm main",
        "deb http://m/debian bookworm-updates main",
        "deb http://m/debian-security bookworm-security main",
    ]


def test_what_a_failed_build_means() -> None:
    """The lines are mmdebstrap's own, of a package that is not there and of a mirror that does not answer."""
    absent = debian.failure(
        debian.RELEASES[0],
        [
            "Building dependency tree...",
            "E: Unable to locate package no-such-package-anywhere",
            "E: setup failed: E: apt-get --yes install no-such-package-anywhere failed",
            "E: mmdebstrap failed to run",
        ],
    )
    assert isinstance(absent, Invalid) and absent.message == "debian:12 has no package no-such-package-anywhere"
    unreachable = debian.failure(
        debian.RELEASES[1],
        [
            "E: Failed to fetch http://127.0.0.1:9/debian/dists/trixie/InRelease  Could not connect to 127.0.0.1:9",
            "E: Some index files failed to download. They have been ignored, or old ones used instead.",
            "E: mmdebstrap failed to run",
        ],
    )
    assert isinstance(unreachable, Unavailable) and "Could not connect" in unreachable.message
    assert isinstance(debian.failure(debian.RELEASES[0], ["E: something else"]), Internal)
