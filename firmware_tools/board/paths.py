"""Where things lie on a board. Standard library only.

/opt/multispin/slots/a, b      two whole installations
/opt/multispin/current         link to the one that runs
/opt/multispin/state.json      what is known of both; the link follows it
/opt/multispin/guard.pyz       the guard, outside every slot
/etc/multispin                 configuration, identity and keys: no update touches them
/var/lib/multispin             downloads, metadata seen, the clock's floor
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SLOTS", "BoardPaths"]

SLOTS = ("a", "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardPaths:
    """Every path below one root: "/" on a board, any folder in a test."""

    root: Path = Path("/")

    @property
    def home(self) -> Path:
        """The installation."""
        return self.root / "opt/multispin"

    @property
    def current(self) -> Path:
        """The link to the slot that runs."""
        return self.home / "current"

    @property
    def state(self) -> Path:
        """The slots' state."""
        return self.home / "state.json"

    @property
    def guard(self) -> Path:
        """The guard's archive."""
        return self.home / "guard.pyz"

    @property
    def config(self) -> Path:
        """Configuration and identity."""
        return self.root / "etc/multispin"

    @property
    def data(self) -> Path:
        """What the board writes."""
        return self.root / "var/lib/multispin"

    @property
    def units(self) -> Path:
        """systemd's units."""
        return self.root / "etc/systemd/system"

    def slot(self, name: str) -> Path:
        """Return the folder of slot "a" or "b"."""
        if name not in SLOTS:
            raise ValueError(f"no slot {name!r}")
        return self.home / "slots" / name
