"""Certificates for tests: an authority, and whoever it vouches for."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """Writes `ca.crt`, `NAME.crt` and `NAME.key` into its folder, and `ca.crl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = named(f"authority {folder.name}")
        certificate = (
            self._builder("authority", self._key)
            .subject_name(self._name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = self._write("ca.crt", certificate)
        self._revoked: list[x509.Certificate] = []
        self._issued: dict[str, x509.Certificate] = {}

    def issue(self, name: str, *, address: str | None = None) -> tuple[Path, Path]:
        """Return certificate and key of `name`; `address` is for a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name, key).subject_name(named(name))
        if address is not None:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        self._issued[name] = builder.sign(self._key, hashes.SHA256())
        key_file = self.folder / f"{name.replace('/', '_')}.key"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return self._write(f"{name.replace('/', '_')}.crt", self._issued[name]), key_file

    def revocation_list(self, *names: str) -> Path:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(NOW - DAY)
            .next_update(NOW + DAY)
        )
        for name in names:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(self._issued[name].serial_number)
                .revocation_date(NOW - DAY)
                .build()
            )
        return self._write("ca.crl", builder.sign(self._key, hashes.SHA256()))

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + DAY)
        )

    def _write(self, name: str, thing: x509.Certificate | x509.CertificateRevocationList) -> Path:
        path = self.folder / name
        path.write_bytes(thing.public_bytes(serialization.Encoding.PEM))
        return path
