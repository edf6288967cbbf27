"""The layer's own certificate authority: who is a host, who is control.

EC P-256, TLS 1.3. The authority lives ten years, a leaf one year; a leaf is renewed by issuing it anew (``due`` says when)
and restarting what serves it. The authority's key never leaves the directory that it was made in.
"""

import contextlib
import ipaddress
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lamella.model.errors import Corrupt, Invalid, NotFound
from lamella.model.ids import check_name
from lamella.wire.identity import ROLES, urn

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
_BACKDATE = timedelta(minutes=5)


class Bundle(msgspec.Struct, kw_only=True, frozen=True):
    """All that one party needs, in PEM: its key, its certificate, the authority to trust. The file of it is a secret."""

    role: str
    name: str
    key: str
    certificate: str
    authority: str

    def save(self, path: Path) -> None:
        """Write it to *path*, readable by its owner only; a crash leaves the old file or the new one."""
        _write(path, msgspec.json.format(msgspec.json.encode(self)))

    @classmethod
    def load(cls, path: Path) -> "Bundle":
        """:raise NotFound: when there is no such file. :raise Corrupt: when it is not a bundle."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError as error:
            raise NotFound(f"there is no certificate bundle at {path}", hint="issue one on the control side") from error
        except msgspec.MsgspecError as error:
            raise Corrupt(f"{path} is not a certificate bundle: {error}", hint="issue it anew") from error

    @property
    def expires_at(self) -> datetime:
        return x509.load_pem_x509_certificate(self.certificate.encode()).not_valid_after_utc

    def due(self, now: datetime | None = None) -> bool:
        """Whether it is time to issue it anew."""
        return (now or datetime.now(UTC)) + RENEW_BEFORE >= self.expires_at

    def server_context(self) -> ssl.SSLContext:
        """TLS for one who is called: only callers with a certificate of the same authority get past the handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._complete(context)

    def client_context(self) -> ssl.SSLContext:
        """TLS for one who calls: trusts this authority alone.

        Who answers is checked by its URI (``Party``), not by the host name that was called: every certificate is good for the
        loopback addresses, and an address is a way to a host, not its identity.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        return self._complete(context)

    def _complete(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.authority)
        # The ssl module reads keys from files only; this one has no name and never reaches a disk.
        descriptor = os.memfd_create("bundle", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, (self.key + self.certificate).encode())
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context


class Authority:
    """A certificate authority in a directory: ``authority.key`` and ``authority.crt``."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def open(cls, directory: Path) -> "Authority":
        """The authority in *directory*, made when there is none.

        :raise Corrupt: when what lies there is not one.
        """
        key_path, certificate_path = directory / "authority.key", directory / "authority.crt"
        if not certificate_path.exists():
            cls._create(key_path, certificate_path)
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except (OSError, ValueError) as error:
            raise Corrupt(
                f"the authority in {directory} cannot be read: {error}", hint="restore it from a backup"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise Corrupt(f"the authority in {directory} has a key of another", hint="restore it from a backup")
        return cls(key, certificate)

    @staticmethod
    def _create(key_path: Path, certificate_path: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Lamella authority {os.urandom(4).hex()}")])
        certificate = (
            _builder(name, name, key.public_key(), AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # The certificate is written last: while it is missing, there is no authority yet and it is made anew.
        _write(key_path, _pem(key).encode())
        _write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, role: str, name: str, *, addresses: list[str] | None = None, life: timedelta = LEAF_LIFE) -> Bundle:
        """A fresh key and a certificate for *role* (``host`` or ``control``) *name*.

        It can be called at *addresses* (DNS names or IPs); *name* itself, ``localhost`` and the loopback addresses are always among them.

        :raise Invalid: when the role, the name or an address is none.
        """
        if role not in ROLES:
            raise Invalid(f"{role!r} is not a role", hint=f"one of {', '.join(ROLES)}", field="role")
        check_name(name)
        key = ec.generate_private_key(ec.SECP256R1())
        wanted: list[str] = [name, "localhost", "127.0.0.1", "::1", *(addresses or [])]
        places = sorted(set(wanted), key=wanted.index)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}:{name}"[:64])])
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), life)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(urn(role, name)), *map(_place, places)]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Bundle(
            role=role,
            name=name,
            key=_pem(key),
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            authority=self.certificate.public_bytes(serialization.Encoding.PEM).decode(),
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - _BACKDATE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _BACKDATE + life)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _place(address: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(address))
    try:
        return x509.DNSName(address)
    except ValueError as error:
        raise Invalid(f"{address!r} is neither an IP address nor a DNS name", field="addresses") from error


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
