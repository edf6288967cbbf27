"""The certificate that a machine's screen shows to its viewers: from an authority that is made for it and then forgotten.

The viewer gets the authority's certificate with its ticket, over the API: nobody else's certificate can pass for this screen, and as
the authority's key is thrown away, none will ever be issued again. QEMU reads the files (names as in its ``tls-creds-x509``) from a
directory that its room shows; only its own user can read the key.
"""

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY, CERTIFICATE, KEY, GROUP = "ca-cert.pem", "server-cert.pem", "server-key.pem", "dh-params.pem"

# A machine may run for years, and QEMU reads them when it starts.
LIFE = timedelta(days=3650)
_BACKDATE = timedelta(minutes=5)

# The group ffdhe2048 of RFC 7919. Viewers use elliptic curves; without this file QEMU looks for a prime of its own for seconds.
_FFDHE2048 = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def make_certificates(directory: Path, name: str, user: int) -> None:
    """Write a fresh authority, certificate and key into *directory*, the key for *user* (uid and gid) alone.

    Good for *name*, ``localhost`` and the loopback addresses, where viewers connect to whoever carries the screen to them. Call it
    before each start; what a crash leaves half-done is made anew by the next.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = _name(f"Lamella screen of {name} {os.urandom(4).hex()}")
    authority = (
        _builder(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(_name(name), issuer, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_called(name)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(directory / GROUP, _FFDHE2048.encode())
    _write(directory / AUTHORITY, authority.public_bytes(pem))
    _write(directory / CERTIFICATE, certificate.public_bytes(pem))
    _write(directory / KEY, secret, user)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + LIFE)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _called(name: str) -> list[x509.GeneralName]:
    addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
    return [x509.DNSName(name), x509.DNSName("localhost"), *addresses]


def _usage(*, authority: bool) -> x509.KeyUsage:
    """QEMU 7.2 wants key encipherment of a server's certificate, whatever its key is (crypto/tlscredsx509.c)."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_encipherment=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, content: bytes, user: int | None = None) -> None:
    """A new file in place of the old; with *user* it is theirs alone from its first byte."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644 if user is None else 0o400)
    try:
        if user is not None:
            os.fchown(fd, user, user)
        os.write(fd, content)
    finally:
        os.close(fd)
    new.replace(path)
