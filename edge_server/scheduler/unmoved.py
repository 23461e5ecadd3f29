"""What controllers that learn nothing have in common: whoever derives says only what is granted."""

from __future__ import annotations

from edge_server.scheduler.interface import Grant, Mode, RoundReport, VerifyReport

__all__ = ["Unmoved"]


class Unmoved:
    """A `Controller` that no report moves."""

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:  # noqa: ARG002
        """Return what is granted anyway."""
        return self.grant(device, session, now_s=now_s)

    def observe(self, report: RoundReport) -> None:
        """Ignore a round."""

    def observe_verify(self, report: VerifyReport) -> None:
        """Ignore a pass."""

    def observe_link(self, device: str, report: dict[str, object], *, now_s: float) -> None:
        """Ignore a link report."""

    def observe_energy(self, device: str, **figures: float | None) -> None:
        """Ignore what tokens cost."""

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:
        """Return the session's next grant: the one thing left to say."""
        raise NotImplementedError

    def closed(self, device: str, session: int, *, now_s: float) -> None:
        """Ignore the end of a session."""
