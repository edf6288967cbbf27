"""The quote of a TDX guest, version 4: what it says, and whether Intel's keys stand behind it. Pure.

Source: Intel "TDX DCAP Quoting Library API", appendix A (quote format, version 4); the enclave report of the quoting enclave is in
"SGX DCAP ECDSA Quote Library API", appendix A.
"""

import hashlib
import struct

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from lamella.host.compute.confidential.chain import check_chain, read_chain
from lamella.model.errors import Corrupt

HEADER = 48
BODY = 584
_VERSION, _ECDSA_P256, _TDX = 4, 2, 0x81
_QE_REPORT = 384
_CERTIFIED_BY_QE, _CERTIFIED_BY_CHAIN = 6, 5
_MOST = 1 << 20


class TdQuote(msgspec.Struct, kw_only=True, frozen=True):
    """``mrtd`` is the measurement at launch, ``rtmrs`` of what was loaded since, ``report_data`` what the guest asked to be signed,
    ``config_id`` what the host said at launch. ``debug`` says that the host may read the guest after all."""

    vendor: bytes
    attributes: int
    mrtd: bytes
    config_id: bytes
    rtmrs: list[bytes]
    report_data: bytes
    signed: bytes
    signature: bytes
    key: bytes
    qe_report: bytes
    qe_signature: bytes
    qe_data: bytes
    certificates: bytes

    @property
    def debug(self) -> bool:
        return bool(self.attributes & 1)


def parse(data: bytes) -> TdQuote:
    """:raise Corrupt: when it is no such quote."""
    if not HEADER + BODY + 4 <= len(data) <= _MOST:
        raise Corrupt(f"a TDX quote is not {len(data)} bytes long", hint="fetch it again")
    version, algorithm, kind = struct.unpack_from("<HHI", data, 0)
    if version != _VERSION or kind != _TDX:
        raise Corrupt(f"this is a quote of version {version} and type {kind:#x}, not TDX's of version 4")
    if algorithm != _ECDSA_P256:
        raise Corrupt(f"the quote is signed by an algorithm that is not known ({algorithm})")
    body = data[HEADER : HEADER + BODY]
    take = _Take(data, HEADER + BODY)
    end = take.number(4) + take.position
    signature, key = take.bytes(64), take.bytes(64)
    if take.number(2) != _CERTIFIED_BY_QE or take.number(4) + take.position > end:
        raise Corrupt("the quote's key is not certified by a quoting enclave")
    qe_report, qe_signature = take.bytes(_QE_REPORT), take.bytes(64)
    qe_data = take.bytes(take.number(2))
    if take.number(2) != _CERTIFIED_BY_CHAIN:
        raise Corrupt("the quote carries no chain of certificates")
    certificates = take.bytes(take.number(4))
    if take.position > end:
        raise Corrupt("the quote's parts are longer than itself")
    return TdQuote(
        vendor=data[12:28],
        attributes=struct.unpack_from("<Q", body, 120)[0],
        mrtd=body[136:184],
        config_id=body[184:232],
        rtmrs=[body[at : at + 48] for at in range(328, 520, 48)],
        report_data=body[520:584],
        signed=data[: HEADER + BODY],
        signature=signature,
        key=key,
        qe_report=qe_report,
        qe_signature=qe_signature,
        qe_data=qe_data,
        certificates=certificates.rstrip(b"\0"),
    )


def verify(quote: TdQuote, *, nonce: bytes, root: x509.Certificate) -> None:
    """Check that the quote's certificates lead to *root*, that the first signed the quoting enclave's report, that this names the key that
    signed the quote, and that the quote answers *nonce* (at most 64 bytes, zeros after it).

    Which versions of the quoting enclave and the TDX module are to be trusted is Intel's collateral to say, which is not looked at.

    :raise Corrupt: when any of it is not so; the sentence says what.
    """
    chain = read_chain(quote.certificates)
    check_chain(chain, root)
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Corrupt("the certificate's key is of another kind")
    _check(key, quote.qe_signature, quote.qe_report, "the quoting enclave's report is not signed by its certificate")
    bound = hashlib.sha256(quote.key + quote.qe_data).digest() + bytes(32)
    if quote.qe_report[320:384] != bound:
        raise Corrupt("the quoting enclave's report names another key")
    try:
        ours = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + quote.key)
    except ValueError as error:
        raise Corrupt("the quote's key is no point of the curve P-256") from error
    _check(ours, quote.signature, quote.signed, "the quote's signature is not its key's")
    if quote.report_data != nonce.ljust(64, b"\0"):
        raise Corrupt("the quote does not answer this nonce", hint="it may be an old one, sent again")
    if quote.debug:
        raise Corrupt("the quote's attributes let the host read the guest (debug)")


class _Take:
    """Reads one part after the other.

    Every method raises :class:`Corrupt` when there is not that much left.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def bytes(self, count: int) -> bytes:
        found = self._data[self.position : self.position + count]
        if len(found) < count:
            raise Corrupt("the quote breaks off", hint="fetch it again")
        self.position += count
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.bytes(size), "little")


def _check(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes, otherwise: str) -> None:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise Corrupt(otherwise) from error
