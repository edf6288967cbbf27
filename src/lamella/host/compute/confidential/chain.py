"""Chains of certificates: each signed by the next, the last one known. Pure."""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from lamella.model.errors import Corrupt


def read_chain(data: bytes) -> list[x509.Certificate]:
    """The certificates in PEM text, in its order.

    :raise Corrupt: when there is none, or one is torn.
    """
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise Corrupt(f"these are no certificates in PEM: {error}") from error


def check_chain(chain: list[x509.Certificate], root: x509.Certificate, *, at: datetime | None = None) -> None:
    """Check every signature, and that every certificate is valid *at* that time (now).

    :raise Corrupt: when the chain does not lead from its first certificate to *root*.
    """
    if not chain:
        raise Corrupt("there is no certificate")
    at = at or datetime.now(UTC)
    if chain[-1].public_bytes(Encoding.DER) != root.public_bytes(Encoding.DER):
        chain = [*chain, root]
    for certificate, issuer in zip(chain, [*chain[1:], root], strict=True):
        name = certificate.subject.rfc4514_string()
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise Corrupt(f"the certificate {name} is not valid at {at:%Y-%m-%d}")
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise Corrupt(f"the certificate {name} is not signed by {issuer.subject.rfc4514_string()}") from error
