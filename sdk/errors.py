"""The one exception tree of the project.

Every error here is a user's mistake or a device's fault: one line that names the step, the thing
and the next action, and a numbered exit code. A bug stays a traceback. Packages add leaves of their
own beneath these branches; nothing else is raised across a package's border.

    MultispinError                exit 1
    ├── ConfigError               exit 2    a bad option, file or value given by the user
    ├── TransportError            exit 3
    │   ├── ConnectError                    the broker could not be reached or refused us
    │   └── LinkLostError                   no answer within every allowed retry
    ├── ProtocolError             exit 4
    │   ├── MalformedFrameError             bytes that are not a frame of ours
    │   └── RejectedError                   the server refused, with its code and reason
    ├── ModelError                exit 5
    │   ├── ModelLoadError                  a model folder that cannot be run
    │   └── ExportError                     a model that could not be exported faithfully
    ├── BrokerError               exit 6    no broker could be started or found
    ├── CapacityError             exit 7    no room for another session
    ├── EnergyError               exit 8    a meter, window or record that cannot be trusted
    ├── LinkError                 exit 9    a link probe that was asked for and is not there
    ├── FirmwareError             exit 10   bundling, flashing, updating
    └── DependencyError           exit 11   an optional dependency is missing
"""

from __future__ import annotations

__all__ = [
    "BrokerError",
    "CapacityError",
    "ConfigError",
    "ConnectError",
    "DependencyError",
    "EnergyError",
    "ExportError",
    "FirmwareError",
    "LinkError",
    "LinkLostError",
    "MalformedFrameError",
    "ModelError",
    "ModelLoadError",
    "MultispinError",
    "ProtocolError",
    "RejectedError",
    "TransportError",
    "first_line",
]


class MultispinError(Exception):
    """Base of every error that the project raises on purpose; prints as one line."""

    exit_code = 1


class ConfigError(MultispinError):
    """A bad option, file or value given by the user."""

    exit_code = 2


class TransportError(MultispinError):
    """Something between this process and its peer failed."""

    exit_code = 3


class ConnectError(TransportError):
    """The broker could not be reached, or refused us."""


class LinkLostError(TransportError):
    """No answer came within every allowed retry."""


class ProtocolError(MultispinError):
    """The peer does not speak our protocol, or refuses what we said in it."""

    exit_code = 4


class MalformedFrameError(ProtocolError):
    """Bytes that are not a frame of ours."""


class RejectedError(ProtocolError):
    """The server refused a frame; `code` is one of `sdk.protocol.RejectCode`'s values."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"the server refused ({code}): {reason}")
        self.code = code
        self.reason = reason


class ModelError(MultispinError):
    """A model cannot be used."""

    exit_code = 5


class ModelLoadError(ModelError):
    """A model folder that cannot be run."""


class ExportError(ModelError):
    """A model that could not be exported faithfully."""


class BrokerError(MultispinError):
    """No broker could be started or found."""

    exit_code = 6


class CapacityError(MultispinError):
    """No room for another session."""

    exit_code = 7


class EnergyError(MultispinError):
    """A meter, window or record that cannot be trusted."""

    exit_code = 8


class LinkError(MultispinError):
    """A link probe that was asked for and is not there."""

    exit_code = 9


class FirmwareError(MultispinError):
    """Bundling, flashing or updating failed; the message says at which step and what to do."""

    exit_code = 10


class DependencyError(MultispinError):
    """An optional dependency is missing; the message names the extra that brings it."""

    exit_code = 11

    def __init__(self, needed_for: str, extra: str) -> None:
        super().__init__(f"{needed_for} needs an extra: pip install 'multispin[{extra}]'")
        self.extra = extra


def first_line(error: Exception) -> str:
    """Return the first line of what another library's error says, or its kind if it says nothing.

    At most 200 characters.
    """
    said = str(error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__
