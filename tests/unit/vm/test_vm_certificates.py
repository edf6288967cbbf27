"""What a machine's screen shows to its viewers."""

import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.dh import DHParameters

from lamella.host.compute.vm import certificates


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_certificate_is_the_authoritys_and_the_key_its_own(tmp_path: Path) -> None:
    certificates.make_certificates(tmp_path, "box", os.getuid())
    authority, certificate = load(tmp_path / certificates.AUTHORITY), load(tmp_path / certificates.CERTIFICATE)
    certificate.verify_directly_issued_by(authority)
    key = serialization.load_pem_private_key((tmp_path / certificates.KEY).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["box", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_each_start_has_an_authority_of_its_own(tmp_path: Path) -> None:
    certificates.make_certificates(tmp_path, "box", os.getuid())
    first = load(tmp_path / certificates.AUTHORITY)
    (tmp_path / f"{certificates.KEY}.new").write_text("left by a crash")
    certificates.make_certificates(tmp_path, "box", os.getuid())
    second = load(tmp_path / certificates.AUTHORITY)
    assert first.public_key() != second.public_key() and first.subject != second.subject
    load(tmp_path / certificates.CERTIFICATE).verify_directly_issued_by(second)


def test_the_group_is_the_safe_prime_of_rfc_7919(tmp_path: Path) -> None:
    certificates.make_certificates(tmp_path, "box", os.getuid())
    parameters = serialization.load_pem_parameters((tmp_path / certificates.GROUP).read_bytes())
    assert isinstance(parameters, DHParameters)
    numbers = parameters.parameter_numbers()
    prime, ones = numbers.p, (1 << 64) - 1
    assert (numbers.g, prime.bit_length(), prime >> 1984, prime & ones) == (2, 2048, ones, ones)
    # Between the ones stand the digits of e (RFC 7919, A.1): 2.71828...
    assert f"{((prime >> 1024) & ((1 << 960) - 1)) >> 900:015x}" == f"{0xADF85458A2BB4A9:015x}"
    for base in (2, 3, 5, 7):
        assert pow(base, prime - 1, prime) == 1 == pow(base, (prime - 1) // 2, prime) ** 2 % prime
