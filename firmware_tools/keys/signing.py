"""Ed25519 keys that sign bundles and release metadata: made, written, read, used.

Knows nothing about where they are kept or what is signed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from firmware_tools.errors import KeysError

__all__ = ["SIGNATURE_BYTES", "SigningKey", "VerifyKey"]

SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyKey:
    """The public half of a signing key."""

    public: Ed25519PublicKey

    @classmethod
    def from_pem(cls, pem: bytes) -> VerifyKey:
        """Read a PEM public key.

        Raises:
            KeysError: if it is not an Ed25519 public key.
        """
        try:
            public = serialization.load_pem_public_key(pem)
        except ValueError as error:
            raise KeysError("public key: not PEM; take NAME.pub from the key store") from error
        if not isinstance(public, Ed25519PublicKey):
            raise KeysError("public key: not Ed25519; take NAME.pub from the key store")
        return cls(public=public)

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the key."""
        return self.public.public_bytes_raw()

    @property
    def key_id(self) -> str:
        """SHA-256 of the raw key, in hex."""
        return hashlib.sha256(self.raw).hexdigest()

    def to_pem(self) -> bytes:
        """Return the key as PEM."""
        return self.public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Say whether `signature` is this key's over `message`."""
        try:
            self.public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """The secret half; its repr shows nothing of it."""

    private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.verify_key.key_id[:16]})"

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key from the system's randomness."""
        return cls(private=Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Read a PEM secret key.

        Raises:
            KeysError: if it is not an Ed25519 secret key.
        """
        try:
            private = serialization.load_pem_private_key(pem, None)
        except (TypeError, ValueError) as error:
            raise KeysError("signing key: not a PEM key without a password") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise KeysError("signing key: not Ed25519")
        return cls(private=private)

    @property
    def verify_key(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(public=self.private.public_key())

    def to_pem(self) -> bytes:
        """Return the secret as PEM; the caller keeps it in a file of mode 0600."""
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return self.private.sign(message)
