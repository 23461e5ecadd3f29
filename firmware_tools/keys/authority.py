"""A small X.509 authority: its own certificate, server and client certificates, a revocation list.

Certificates begin on 1970-01-01, so that a board without a clock can still join the broker and set
its clock. Knows nothing about files.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority", "Issued", "certificate_pem", "fingerprint"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_CA_YEARS = 20
_LEAF_YEARS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and the secret key that belongs to it, both PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Issued({fingerprint(x509.load_pem_x509_certificate(self.certificate))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Signs certificates and the revocation list with one P-256 key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority({fingerprint(self.certificate)})"

    @classmethod
    def create(cls, name: str, *, now: datetime) -> Authority:
        """Make a self-signed authority called `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        public = key.public_key()
        certificate = (
            _builder(subject, subject, public, now + timedelta(days=365 * _CA_YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate=certificate, key=key)

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> Authority:
        """Read an authority back."""
        private = serialization.load_pem_private_key(key, None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError("an authority's key is an elliptic-curve key")
        return cls(certificate=x509.load_pem_x509_certificate(certificate), key=private)

    def issue_server(self, name: str, hosts: Sequence[str], *, now: datetime) -> Issued:
        """Issue a server certificate valid for `hosts`, names or addresses."""
        return self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, hosts, now)

    def issue_client(self, name: str, *, now: datetime) -> Issued:
        """Issue a client certificate whose common name is `name`, the broker's user name."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, (), now)

    def revocation_list(self, revoked: Iterable[tuple[int, datetime]], *, number: int) -> bytes:
        """Return the signed list of revoked (serial, when), PEM; valid as long as the authority.

        A list that runs out would shut every device out of the broker, so it does not. Its date is
        `number` seconds after 1970: a broker that has read several lists believes the latest date,
        and whatever its clock says, none of them lies in the future.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(_EPOCH + timedelta(seconds=number))
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for serial, when in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self, name: str, usage: x509.ObjectIdentifier, hosts: Sequence[str], now: datetime
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + timedelta(days=365 * _LEAF_YEARS), self.certificate.not_valid_after_utc)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            _builder(_name(name), self.certificate.subject, key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(issuer_key, critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return Issued(certificate=certificate_pem(certificate), key=_private_pem(key))


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the certificate's SHA-256 in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_EPOCH)
        .not_valid_after(until)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
