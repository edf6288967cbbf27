"""Credentials of a repository, sealed with its own key: whoever has that key could read the repository anyway.

AES-256-GCM (NIST SP 800-38D) under a key of its own (HKDF, RFC 5869); the repository's id is associated data.
"""

import base64
import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lamella.model.backup import Credentials
from lamella.model.errors import Corrupt

_NONCE = 12


def seal(repository: str, key: bytes, credentials: Credentials) -> str:
    """Text that is worth nothing without *key*."""
    nonce = os.urandom(_NONCE)
    text = AESGCM(_under(key)).encrypt(nonce, msgspec.json.encode(credentials), repository.encode())
    return base64.b64encode(nonce + text).decode()


def unseal(repository: str, key: bytes, text: str) -> Credentials:
    """:raise Corrupt: when it is not this repository's."""
    if not text:
        return Credentials()
    try:
        raw = base64.b64decode(text, validate=True)
        plain = AESGCM(_under(key)).decrypt(raw[:_NONCE], raw[_NONCE:], repository.encode())
        return msgspec.json.decode(plain, type=Credentials)
    except (ValueError, InvalidTag, msgspec.DecodeError):
        raise Corrupt(
            "the repository's credentials cannot be unsealed",
            hint="forget the repository (lamella backup repository rm NAME --force), and open it again with its recovery key",
        ) from None


def _under(key: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"lamella repository credentials").derive(key)
