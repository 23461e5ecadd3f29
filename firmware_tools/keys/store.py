"""The key store: one folder of public files and one of secrets, which can be kept off-line.

    PUBLIC/                      SECRET/ (default: PUBLIC/secret, mode 0700, files 0600)
      ca.crt  ca.crl  edge.crt     ca.key  edge.key
      bundle.pub  root.pub  …      bundle.key  root.key  targets.key  online.key
      devices/ID/device.crt        devices/ID/device.key
      broker/                      what the broker's machine needs, its own key with it:
                                   ca.crt  ca.crl  broker.crt  broker.key

Knows nothing about what is signed with the keys, or about the broker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from firmware_tools.durable import write_file
from firmware_tools.errors import KeysError
from firmware_tools.keys.authority import Authority, Issued, certificate_pem, fingerprint
from firmware_tools.keys.signing import SigningKey, VerifyKey
from sdk.protocol.topics import check_device_id

__all__ = ["SIGNING_ROLES", "DeviceFiles", "KeyStore", "utc_now"]

SIGNING_ROLES = ("bundle", "root", "targets", "online")
"""bundle signs bundles; root, targets and online (snapshot and timestamp) sign release metadata."""

OPERATOR = "edge"
"""Common name of the edge server's and the operator's client certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFiles:
    """What a device needs to join the broker, all PEM."""

    device: str
    authority: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"DeviceFiles({self.device!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStore:
    """Makes, hands out, lists and revokes keys kept in two folders."""

    public: Path
    secret: Path

    @classmethod
    def at(cls, public: Path, secret: Path | None = None) -> KeyStore:
        """Return the store in `public`, its secrets in `secret` or in `public/secret`."""
        return cls(public=public, secret=secret or public / "secret")

    @classmethod
    def create(
        cls, public: Path, hosts: Sequence[str], *, secret: Path | None = None, now: datetime
    ) -> KeyStore:
        """Make a new store whose broker answers to `hosts`, and to localhost for `serve --keys`.

        Raises:
            KeysError: if there is one already; it is never overwritten.
        """
        store = cls.at(public, secret)
        if (store.public / "ca.crt").exists() or (store.secret / "ca.key").exists():
            raise KeysError(f"keys init: {public} holds keys already; choose another folder")
        try:
            store.public.mkdir(parents=True, exist_ok=True)
            store.secret.mkdir(parents=True, exist_ok=True)
            os.chmod(store.secret, 0o700)
        except OSError as error:
            raise KeysError(
                f"keys init: {error.filename} cannot be made: {error.strerror}; choose a folder "
                "that you may write to with --keys and --secrets"
            ) from error
        for role in SIGNING_ROLES:
            key = SigningKey.generate()
            write_file(store.secret / f"{role}.key", key.to_pem(), mode=0o600)
            write_file(store.public / f"{role}.pub", key.verify_key.to_pem())
        authority = Authority.create("multispin", now=now)
        store._issue_broker(authority, hosts, now=now)
        write_file(store.broker / "ca.crt", certificate_pem(authority.certificate))
        store._write(OPERATOR, authority.issue_client(OPERATOR, now=now))
        store._write_crl(authority.revocation_list((), number=1))
        ca_key = authority.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_file(store.secret / "ca.key", ca_key, mode=0o600)
        write_file(store.public / "ca.crt", certificate_pem(authority.certificate))
        return store

    @property
    def broker(self) -> Path:
        """The folder for the broker's machine."""
        return self.public / "broker"

    def renew_broker(self, hosts: Sequence[str], *, now: datetime) -> list[str]:
        """Make the broker a new key and certificate for its old names and these; return them all.

        Boards trust the authority, not the certificate, so nothing changes for them.
        """
        return self._issue_broker(self._authority(), [*self.broker_names(), *hosts], now=now)

    def broker_names(self) -> list[str]:
        """Return the names and addresses in the broker's certificate."""
        certificate = x509.load_pem_x509_certificate(self.read("broker/broker.crt"))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in names]

    def issue_device(self, device: str, *, now: datetime) -> DeviceFiles:
        """Make the certificate of `device`.

        Raises:
            KeysError: if it has one that is not revoked.
            ConfigError: if it is not a device id.
        """
        check_device_id(device)
        if device == OPERATOR:
            raise KeysError(f"keys device: {OPERATOR!r} is the edge server's own name")
        issued = self._certificate(device)
        if issued is not None and issued.serial_number not in self.revoked_serials():
            raise KeysError(f"keys device: {device} has a certificate already; revoke it first")
        (self.secret / "devices" / device).mkdir(parents=True, exist_ok=True)
        fresh = self._authority().issue_client(device, now=now)
        self._write(f"devices/{device}/device", fresh)
        return self.device_files(device)

    def device_files(self, device: str) -> DeviceFiles:
        """Return what was issued for `device`.

        Raises:
            KeysError: if nothing was, or it is revoked.
        """
        certificate = self._certificate(check_device_id(device))
        if certificate is None:
            raise KeysError(f"{device} has no certificate; run: multispin keys device {device}")
        if certificate.serial_number in self.revoked_serials():
            raise KeysError(
                f"{device}'s certificate is revoked; run: multispin keys device {device}"
            )
        return DeviceFiles(
            device=device,
            authority=self.read("ca.crt"),
            certificate=certificate_pem(certificate),
            key=self.read_secret(f"devices/{device}/device.key"),
        )

    def revoke(self, device: str, *, now: datetime) -> None:
        """Put the certificate of `device` on the revocation list, which the broker reads.

        Raises:
            KeysError: if it has none. Revoking twice is no error.
        """
        certificate = self._certificate(check_device_id(device))
        if certificate is None:
            raise KeysError(
                f"keys revoke: {device} has no certificate; 'multispin keys show' lists who has one"
            )
        entries = {entry.serial_number: entry.revocation_date_utc for entry in self._crl()}
        if certificate.serial_number in entries:
            return
        entries[certificate.serial_number] = now
        crl = self._authority().revocation_list(entries.items(), number=len(entries) + 1)
        self._write_crl(crl)

    def devices(self) -> dict[str, str]:
        """Return each device's state, "valid" or "revoked", by id."""
        revoked = self.revoked_serials()
        states: dict[str, str] = {}
        for folder in sorted((self.public / "devices").glob("*")):
            certificate = self._certificate(folder.name)
            if certificate is not None:
                valid = certificate.serial_number not in revoked
                states[folder.name] = "valid" if valid else "revoked"
        return states

    def fingerprints(self) -> dict[str, str]:
        """Return SHA-256 fingerprints of the authority, the certificates and the public keys."""
        prints = {
            name: fingerprint(x509.load_pem_x509_certificate(self.read(f"{file}.crt")))
            for name, file in (("ca", "ca"), ("broker", "broker/broker"), (OPERATOR, OPERATOR))
        }
        return prints | {role: self.verify_key(role).key_id for role in SIGNING_ROLES}

    def revoked_serials(self) -> set[int]:
        """Return the serial numbers on the revocation list."""
        return {entry.serial_number for entry in self._crl()}

    def signing_key(self, role: str) -> SigningKey:
        """Return the secret key of one of `SIGNING_ROLES`."""
        return SigningKey.from_pem(self.read_secret(f"{role}.key"))

    def verify_key(self, role: str) -> VerifyKey:
        """Return the public key of one of `SIGNING_ROLES`."""
        return VerifyKey.from_pem(self.read(f"{role}.pub"))

    def read(self, name: str) -> bytes:
        """Return a public file."""
        return _read(self.public / name, "name the folder with --keys, or run: multispin keys init")

    def read_secret(self, name: str) -> bytes:
        """Return a secret file."""
        return _read(
            self.secret / name, "name its folder with --secrets, or run: multispin keys init"
        )

    def _write_crl(self, crl: bytes) -> None:
        write_file(self.broker / "ca.crl", crl)
        write_file(self.public / "ca.crl", crl)

    def _write(self, name: str, issued: Issued) -> None:
        write_file(self.secret / f"{name}.key", issued.key, mode=0o600)
        write_file(self.public / f"{name}.crt", issued.certificate)

    def _issue_broker(
        self, authority: Authority, hosts: Sequence[str], *, now: datetime
    ) -> list[str]:
        names = list(dict.fromkeys([*hosts, "localhost"]))
        issued = authority.issue_server("broker", names, now=now)
        write_file(self.broker / "broker.key", issued.key, mode=0o600)
        write_file(self.broker / "broker.crt", issued.certificate)
        return names

    def _authority(self) -> Authority:
        return Authority.from_pem(self.read("ca.crt"), self.read_secret("ca.key"))

    def _certificate(self, device: str) -> x509.Certificate | None:
        path = self.public / "devices" / device / "device.crt"
        if not path.exists():
            return None
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if [str(name.value) for name in names] != [device]:
            raise KeysError(f"{path}: made for another device; delete it and make a new one")
        return certificate

    def _crl(self) -> x509.CertificateRevocationList:
        return x509.load_pem_x509_crl(self.read("ca.crl"))


def utc_now() -> datetime:
    """Return the present, in whole seconds, as certificates count it."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def _read(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise KeysError(f"{path}: not there; {hint}") from error
    except PermissionError as error:
        raise KeysError(f"{path}: not readable by this user; use the user that made it") from error
