"""Why a connection failed, in one line with the next action; pure."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from sdk.config import BrokerConfig

__all__ = ["Failure", "explain_error", "explain_loss", "explain_refusal"]

_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


@dataclass(frozen=True, slots=True)
class Failure:
    """A reason; `permanent` if trying again does not help before somebody changes something."""

    reason: str
    permanent: bool = False


def explain_error(error: Exception, broker: BrokerConfig) -> Failure:
    """Explain why the socket could not be connected."""
    at = broker.address
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _WRONG_NAME:
        return Failure(
            f"the certificate of {at} is not trusted: it does not name {broker.host}; use a name "
            "that it has, or add this one where the keys are: 'multispin keys broker --host "
            f"{broker.host}'",
            True,
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return Failure(
            f"the certificate of {at} is not trusted: {why}; check ca_file and the host name", True
        )
    if isinstance(error, ssl.SSLError):
        return Failure(
            f"no TLS with {at}: {getattr(error, 'reason', None) or error}; check port and ca_file",
            True,
        )
    if isinstance(error, ConnectionResetError) and broker.tls:
        return Failure(f"{at} hung up on our TLS greeting; if it speaks none, leave ca_file out")
    if isinstance(error, ConnectionRefusedError):
        return Failure(
            f"nothing listens at {at}: start a broker there ('multispin serve' brings one) "
            "or name another one"
        )
    if isinstance(error, TimeoutError):
        return Failure(f"{at} does not answer: check the address and the network")
    if isinstance(error, socket.gaierror | UnicodeError):
        return Failure(f"the name {broker.host} is unknown: check the spelling and the network")
    return Failure(f"{at} cannot be reached: {error}")


def explain_refusal(reason: str, broker: BrokerConfig) -> Failure:
    """Explain a CONNACK that says no (MQTT 3.1.1, 3.2.2.3)."""
    if "unavailable" in reason.lower():
        return Failure(f"the broker at {broker.address} is not available yet")
    who = f"user {broker.username!r}" if broker.username else "a client without a user name"
    if broker.cert_file is not None and not broker.username:
        who = f"the certificate {broker.cert_file}"
    return Failure(
        f"the broker at {broker.address} refuses {who} ({reason}): check the credentials", True
    )


def explain_loss(last_error: str, broker: BrokerConfig, *, answered: bool) -> Failure:
    """Explain a connection that ended by itself, from the last error on its socket, if any."""
    if answered:
        return Failure(f"the connection to {broker.address} was lost")
    if "alert" in last_error.lower():  # a TLS alert: the broker does not like our certificate
        what = broker.cert_file or "a client without a certificate"
        detail = last_error.rsplit("] ", 1)[-1].split(" (_ssl")[0].removeprefix("sslv3 alert ")
        return Failure(
            f"the broker at {broker.address} refuses {what}: {detail}; check both clocks, or make "
            "a new certificate where the keys are ('multispin keys device')",
            True,
        )
    hint = "" if broker.tls else "; if it speaks TLS, give ca_file"
    return Failure(f"{broker.address} closed the connection before letting us in{hint}")
