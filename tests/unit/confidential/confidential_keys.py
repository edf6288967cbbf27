"""Chains of keys made in a test, shaped like AMD's and Intel's: roots, certificates, reports and quotes."""

import hashlib
import struct
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
CHIP = bytes(range(64))
TCB = bytes([3, 0, 0, 0, 0, 0, 14, 72])
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)

type_of_key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def certificate(
    name: str,
    key: type_of_key,
    issuer: str,
    issuer_key: type_of_key,
    *,
    extensions: dict[str, bytes] | None = None,
    begins: datetime | None = None,
) -> x509.Certificate:
    begins = begins or datetime.now(UTC) - DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + 10 * DAY)
    )
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    if isinstance(issuer_key, rsa.RSAPrivateKey):
        return builder.sign(issuer_key, hashes.SHA384(), rsa_padding=PSS)
    return builder.sign(issuer_key, hashes.SHA256())


class Amd:
    """ARK (signs itself and ASK), ASK (signs VCEK), VCEK (signs reports); RSA with PSS as AMD's are, smaller so that it is quick."""

    def __init__(self, *, chip: bytes = CHIP, snp: int = TCB[6]) -> None:
        self.root_key, self.signer_key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.ark = certificate("ARK", self.root_key, "ARK", self.root_key)
        self.ask = certificate("ASK", self.signer_key, "ARK", self.root_key)
        base = "1.3.6.1.4.1.3704.1"
        extensions = {
            f"{base}.3.1": b"\x02\x01" + bytes([TCB[0]]),
            f"{base}.3.2": b"\x02\x01" + bytes([TCB[1]]),
            f"{base}.3.3": b"\x02\x01" + bytes([snp]),
            f"{base}.3.8": b"\x02\x01" + bytes([TCB[7]]),
            f"{base}.4": chip,
        }
        self.vcek = certificate("VCEK", self.key, "ASK", self.signer_key, extensions=extensions)

    @property
    def chain(self) -> list[x509.Certificate]:
        return [self.vcek, self.ask, self.ark]

    def report(self, nonce: bytes, *, policy: int = 0x30000, version: int = 2) -> bytes:
        """The structure ATTESTATION_REPORT, field by field, signed."""
        body = bytearray(0x2A0)
        struct.pack_into("<IIQ", body, 0, version, 0, policy)
        struct.pack_into("<II", body, 0x30, 0, 1)
        body[0x38:0x40] = TCB
        body[0x50:0x90] = nonce.ljust(64, b"\0")
        body[0x90:0xC0] = hashlib.sha384(b"the launch").digest()
        body[0xC0:0xE0] = b"host data".ljust(32, b"\0")
        body[0x140:0x160] = b"r" * 32
        body[0x180:0x188] = TCB
        body[0x1A0:0x1E0] = CHIP
        r, s = decode_dss_signature(self.key.sign(bytes(body), ec.ECDSA(hashes.SHA384())))
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return bytes(body) + signature.ljust(512, b"\0")


class Intel:
    """Root, platform authority and PCK certificate on P-256; a quoting enclave whose report names the key that signs the quote."""

    def __init__(self) -> None:
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]
        self.root_key, self.middle_key, self.pck_key, self.key = keys
        self.root = certificate("root", self.root_key, "root", self.root_key)
        self.middle = certificate("platform", self.middle_key, "root", self.root_key)
        self.pck = certificate("pck", self.pck_key, "platform", self.middle_key)

    def quote(self, nonce: bytes, *, attributes: int = 1 << 28, bound: bytes | None = None) -> bytes:
        """Header, body and signature data of version 4, part by part."""
        header = struct.pack("<HHIHH", 4, 2, 0x81, 0, 0) + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607") + bytes(20)
        body = bytearray(584)
        struct.pack_into("<Q", body, 120, attributes)
        body[136:184] = hashlib.sha384(b"the launch").digest()
        body[184:232] = b"config".ljust(48, b"\0")
        for number in range(4):
            body[328 + number * 48 : 376 + number * 48] = bytes([number]) * 48
        body[520:584] = nonce.ljust(64, b"\0")
        signed = header + bytes(body)
        public = self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        extra = b"auth data"
        qe_report = bytearray(384)
        qe_report[320:384] = bound or hashlib.sha256(public + extra).digest() + bytes(32)
        chain = b"".join(item.public_bytes(Encoding.PEM) for item in (self.pck, self.middle, self.root)) + b"\0"
        inner = bytes(qe_report) + _raw(self.pck_key, bytes(qe_report))
        inner += struct.pack("<H", len(extra)) + extra + struct.pack("<HI", 5, len(chain)) + chain
        signature = _raw(self.key, signed) + public + struct.pack("<HI", 6, len(inner)) + inner
        return signed + struct.pack("<I", len(signature)) + signature


def _raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
