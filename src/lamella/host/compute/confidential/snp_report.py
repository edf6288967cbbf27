"""The attestation report of SEV-SNP: what it says, and whether AMD's keys signed it. Pure.

Source: AMD publication 56860, "SEV Secure Nested Paging Firmware ABI Specification", table ATTESTATION_REPORT (versions 2 and 3) and
chapter "Chips and keys"; AMD publication 57230, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface" (extensions).
"""

import struct

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from lamella.host.compute.confidential.chain import check_chain
from lamella.model.errors import Corrupt

SIZE = 0x4A0
SIGNED = 0x2A0
_ECDSA_P384_SHA384 = 1
_NUMBER = 72  # bytes of each number of the signature, least significant first

_OID = "1.3.6.1.4.1.3704.1"
_HARDWARE_ID = x509.ObjectIdentifier(f"{_OID}.4")
_PARTS = {"boot_loader": f"{_OID}.3.1", "tee": f"{_OID}.3.2", "snp": f"{_OID}.3.3", "microcode": f"{_OID}.3.8"}


class Tcb(msgspec.Struct, kw_only=True, frozen=True):
    """Versions of what the processor trusts (TCB_VERSION of the 7003 to 9004 series)."""

    boot_loader: int
    tee: int
    snp: int
    microcode: int


class SnpReport(msgspec.Struct, kw_only=True, frozen=True):
    """``measurement`` is of the memory at launch, ``report_data`` what the guest asked to be signed (a nonce), ``host_data`` what the host
    said at launch. ``debug`` says that the host may read the guest after all; ``vmpl`` is the privilege level that asked."""

    version: int
    policy: int
    vmpl: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    report_id: bytes
    chip_id: bytes
    reported_tcb: Tcb
    signed: bytes
    r: int
    s: int

    @property
    def debug(self) -> bool:
        return bool(self.policy >> 19 & 1)


def parse(data: bytes) -> SnpReport:
    """:raise Corrupt: when it is no such report."""
    if len(data) < SIZE:
        raise Corrupt(f"an SEV-SNP report has {SIZE} bytes, not {len(data)}", hint="fetch it again")
    version, _, policy = struct.unpack_from("<IIQ", data, 0)
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    if not 2 <= version <= 5:
        raise Corrupt(f"an SEV-SNP report of version {version} is not known", hint="versions 2 to 5 are")
    if algorithm != _ECDSA_P384_SHA384:
        raise Corrupt(f"the report is signed by an algorithm that is not known ({algorithm})")
    return SnpReport(
        version=version,
        policy=policy,
        vmpl=vmpl,
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        report_id=data[0x140:0x160],
        chip_id=data[0x1A0:0x1E0],
        reported_tcb=_tcb(data[0x180:0x188]),
        signed=data[:SIGNED],
        r=int.from_bytes(data[SIGNED : SIGNED + _NUMBER], "little"),
        s=int.from_bytes(data[SIGNED + _NUMBER : SIGNED + 2 * _NUMBER], "little"),
    )


def verify(report: SnpReport, chain: list[x509.Certificate], *, nonce: bytes, root: x509.Certificate) -> None:
    """Check that *chain* (VCEK, ASK, ARK: each signed by the next) leads to *root*, that the VCEK belongs to the chip and its versions that
    the report names, that it signed the report, and that the report answers *nonce* (at most 64 bytes, zeros after it).

    :raise Corrupt: when any of it is not so; the sentence says what.
    """
    check_chain(chain, root)
    vcek = chain[0]
    _check_chip(report, vcek)
    key = vcek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Corrupt("the VCEK is no key on the curve P-384")
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise Corrupt("the report's signature is not the VCEK's") from error
    if report.report_data != nonce.ljust(64, b"\0"):
        raise Corrupt("the report does not answer this nonce", hint="it may be an old one, sent again")
    if report.debug:
        raise Corrupt("the report's policy lets the host read the guest (debug)")


def _tcb(data: bytes) -> Tcb:
    return Tcb(boot_loader=data[0], tee=data[1], snp=data[6], microcode=data[7])


def _check_chip(report: SnpReport, vcek: x509.Certificate) -> None:
    hardware = _extension(vcek, _HARDWARE_ID)
    # It is the bare number in certificates of the service, and an OCTET STRING in some.
    if hardware is not None and report.chip_id != hardware[-64:]:
        raise Corrupt("the VCEK belongs to another chip than the report")
    for name, oid in _PARTS.items():
        value = _extension(vcek, x509.ObjectIdentifier(oid))
        if value is None:
            continue
        version = int.from_bytes(value[2:], "big") if value[:1] == b"\x02" else -1
        if version != getattr(report.reported_tcb, name):
            raise Corrupt(f"the VCEK is for another version of {name} than the report names")


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None
