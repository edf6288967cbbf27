"""The authority and what it issues."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lamella.model.errors import Corrupt, Invalid, NotFound
from lamella.wire.certificates import Authority, Bundle


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "authority")


def test_the_authority_stays_the_same_and_keeps_its_key_to_itself(tmp_path: Path, authority: Authority) -> None:
    again = Authority.open(tmp_path / "authority")
    assert again.certificate == authority.certificate
    for name in ("authority.key", "authority.crt"):
        assert stat.S_IMODE((tmp_path / "authority" / name).stat().st_mode) == 0o600
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_an_authority_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "authority.key").write_text("half")
    Authority.open(tmp_path)
    Authority.open(tmp_path)


def test_an_authority_that_is_damaged_is_not_replaced(tmp_path: Path, authority: Authority) -> None:
    Authority.open(tmp_path / "other")
    (tmp_path / "other" / "authority.key").replace(tmp_path / "authority" / "authority.key")
    with pytest.raises(Corrupt, match="key of another"):
        Authority.open(tmp_path / "authority")
    (tmp_path / "authority" / "authority.key").write_text("nonsense")
    with pytest.raises(Corrupt):
        Authority.open(tmp_path / "authority")


def test_a_leaf_says_who_it_is_and_serves_both_ways(authority: Authority) -> None:
    bundle = authority.issue("host", "alpha", addresses=["10.0.0.7", "alpha.example", "fd00::1"])
    leaf = x509.load_pem_x509_certificate(bundle.certificate.encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:lamella:host:alpha"]
    assert names.get_values_for_type(x509.DNSName) == ["alpha", "localhost", "alpha.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.0.0.7", "fd00::1"]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(authority.certificate)


def test_a_leaf_is_due_a_month_before_its_end(authority: Authority) -> None:
    bundle = authority.issue("host", "alpha")
    assert timedelta(days=364) < bundle.expires_at - datetime.now(UTC) < timedelta(days=366)
    assert not bundle.due()
    assert bundle.due(bundle.expires_at - timedelta(days=29))
    assert authority.issue("host", "alpha", life=timedelta(days=1)).due()


def test_a_bundle_is_a_secret_file(tmp_path: Path, authority: Authority) -> None:
    bundle, path = authority.issue("control", "main"), tmp_path / "new" / "bundle.json"
    bundle.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Bundle.load(path) == bundle
    assert bundle.server_context().verify_mode.name == "CERT_REQUIRED"
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle.json"]


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Bundle.load(tmp_path / "none")
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(Corrupt):
        Bundle.load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("role", "name", "addresses"),
    [("admin", "x", []), ("host", "Not A Name", []), ("host", "a/b", []), ("host", "alpha", ["ümlaut.example"])],
)
def test_what_cannot_be_named_is_not_issued(authority: Authority, role: str, name: str, addresses: list[str]) -> None:
    with pytest.raises(Invalid):
        authority.issue(role, name, addresses=addresses)
