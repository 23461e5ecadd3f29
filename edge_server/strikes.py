"""Who may still be heard: a device that keeps sending rubbish is ignored for a while."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Strikes"]


@dataclass(slots=True, kw_only=True)
class Strikes:
    """A leaky bucket of rejected frames per device, at most `max_devices` of them.

    Attributes:
        limit: strikes that fill the bucket; the device is then ignored until one has leaked.
        leak_per_s: strikes forgiven a second.
    """

    limit: float = 40.0
    leak_per_s: float = 2.0
    max_devices: int = 4096
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)  # strikes, at
    _told: set[str] = field(default_factory=set)  # ignored, and told so

    def add(self, device: str, *, now_s: float) -> None:
        """Count one strike against a device."""
        strikes = self._strikes(device, now_s)
        self._buckets.pop(device, None)
        if len(self._buckets) >= self.max_devices:
            longest_ago = next(iter(self._buckets))
            self._buckets.pop(longest_ago)
            self._told.discard(longest_ago)
        self._buckets[device] = (min(strikes + 1.0, self.limit), now_s)

    def allows(self, device: str, *, now_s: float) -> bool:
        """Return whether a device's frames are read."""
        allowed = self._strikes(device, now_s) <= self.limit - 1.0
        if allowed:
            self._told.discard(device)
        return allowed

    def tell(self, device: str) -> bool:
        """Return whether an ignored device was not told yet; from then on it counts as told."""
        news = device not in self._told
        self._told.add(device)
        return news

    def _strikes(self, device: str, now_s: float) -> float:
        strikes, at_s = self._buckets.get(device, (0.0, now_s))
        return max(0.0, strikes - self.leak_per_s * (now_s - at_s))
