"""Which waiting drafts go into the next pass: continuous, synchronous, ping-pong, or a choice.

Every policy is a deterministic function of what waits and of the time passed in. None knows a
model, a solver or a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from edge_server.scheduler.interface import Policy, Waiting

__all__ = [
    "DEFAULT_DEADLINE_S",
    "DEFAULT_ROW_BUDGET",
    "POLICY_NAMES",
    "Auto",
    "Continuous",
    "PingPong",
    "Synchronous",
    "make_policy",
]

DEFAULT_ROW_BUDGET = 256
DEFAULT_DEADLINE_S = 1.0


def take(waiting: Sequence[Waiting], row_budget: int) -> list[int]:
    """Return the oldest sessions whose rows fit the budget: at least one, none twice."""
    picked: dict[int, None] = {}
    rows = 0
    for draft in waiting:
        if draft.session in picked:
            continue
        # Stop, not skip: a long draft must not be overtaken for ever by short ones.
        if picked and rows + draft.rows > row_budget:
            break
        picked[draft.session] = None
        rows += draft.rows
    return list(picked)


class Continuous:
    """Verify whatever waits as soon as the engine asks, first come first served."""

    def __init__(self, *, row_budget: int = DEFAULT_ROW_BUDGET) -> None:
        self._row_budget = _positive("row_budget", row_budget)

    def pick(
        self,
        waiting: Sequence[Waiting],
        *,
        active: Collection[int],  # noqa: ARG002
        now_s: float,  # noqa: ARG002
    ) -> list[int]:
        """Return the oldest waiting sessions that fit the row budget."""
        return take(waiting, self._row_budget)

    def wake_s(self, waiting: Sequence[Waiting], *, now_s: float) -> float | None:  # noqa: ARG002
        """Return None: nothing changes until something arrives."""
        return None


class Synchronous:
    """Wait for every active session, but never longer than a deadline.

    The deadline runs from the oldest waiting draft. A session that missed a barrier is not waited
    for again until it sends a draft, so that a dead device costs one deadline, not one a round.
    """

    def __init__(
        self,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        row_budget: int = DEFAULT_ROW_BUDGET,
    ) -> None:
        if not deadline_s > 0.0:
            raise ValueError(f"deadline_s must be above 0, got {deadline_s}")
        self._deadline_s = deadline_s
        self._row_budget = _positive("row_budget", row_budget)
        self._released: set[int] = set()  # passed the barrier, not yet picked
        self._absent: set[int] = set()  # missed the last barrier

    def pick(
        self, waiting: Sequence[Waiting], *, active: Collection[int], now_s: float
    ) -> list[int]:
        """Return the released sessions once the barrier is complete or its deadline has passed."""
        arrived = {draft.session for draft in waiting}
        self._absent = (self._absent - arrived) & set(active)
        self._released &= arrived
        if not self._released and self._complete(waiting, arrived, active, now_s):
            self._released = set(arrived)
            self._absent = set(active) - arrived
        picked = take(
            [draft for draft in waiting if draft.session in self._released], self._row_budget
        )
        self._released.difference_update(picked)
        return picked

    def wake_s(self, waiting: Sequence[Waiting], *, now_s: float) -> float | None:
        """Return the time left until the deadline of the oldest waiting draft."""
        if not waiting:
            return None
        return max(0.0, self._due_s(waiting) - now_s)

    def _complete(
        self,
        waiting: Sequence[Waiting],
        arrived: set[int],
        active: Collection[int],
        now_s: float,
    ) -> bool:
        if not waiting:
            return False
        return set(active) - self._absent <= arrived or now_s >= self._due_s(waiting)

    def _due_s(self, waiting: Sequence[Waiting]) -> float:
        return min(draft.arrived_s for draft in waiting) + self._deadline_s


class PingPong:
    """Two groups, each with its own barrier: while one is verified, the other drafts.

    A new session joins the smaller group unless `groups`, asked before every pick, or `assign` says
    otherwise.
    """

    def __init__(
        self,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        row_budget: int = DEFAULT_ROW_BUDGET,
        groups: Callable[[], Mapping[int, int]] | None = None,
    ) -> None:
        self._barriers = tuple(
            Synchronous(deadline_s=deadline_s, row_budget=row_budget) for _ in range(2)
        )
        self._group: dict[int, int] = {}
        self._groups = groups
        self._first = 0  # whose turn it is when both are ready

    def assign(self, groups: Mapping[int, int]) -> None:
        """Put sessions into group 0 or 1, as a solver wants them."""
        if not set(groups.values()) <= {0, 1}:
            raise ValueError(f"groups are 0 and 1, got {sorted(set(groups.values()))}")
        self._group.update(groups)

    def pick(
        self, waiting: Sequence[Waiting], *, active: Collection[int], now_s: float
    ) -> list[int]:
        """Return the group that is ready; when both are, the one that did not go last."""
        self._seat(waiting, active)
        for group in (self._first, 1 - self._first):
            picked = self._barriers[group].pick(
                [draft for draft in waiting if self._group[draft.session] == group],
                active={session for session in active if self._group[session] == group},
                now_s=now_s,
            )
            if picked:
                self._first = 1 - group
                return picked
        return []

    def wake_s(self, waiting: Sequence[Waiting], *, now_s: float) -> float | None:
        """Return the time left until the deadline of the oldest waiting draft."""
        return self._barriers[0].wake_s(waiting, now_s=now_s)

    def _seat(self, waiting: Sequence[Waiting], active: Collection[int]) -> None:
        if self._groups is not None:
            self.assign(self._groups())
        present = sorted({*active, *(draft.session for draft in waiting)})
        self._group = {session: self._group.get(session, -1) for session in present}
        sizes = [list(self._group.values()).count(group) for group in (0, 1)]
        for session in present:
            if self._group[session] < 0:
                group = 0 if sizes[0] <= sizes[1] else 1
                self._group[session] = group
                sizes[group] += 1


class Auto:
    """Follow whichever policy a controller predicts to be best; change only between passes."""

    def __init__(self, *, choose: Callable[[], str], policies: Mapping[str, Policy]) -> None:
        self._choose = choose
        self._policies = dict(policies)

    def pick(
        self, waiting: Sequence[Waiting], *, active: Collection[int], now_s: float
    ) -> list[int]:
        """Return what the chosen policy picks."""
        return self._policies[self._choose()].pick(waiting, active=active, now_s=now_s)

    def wake_s(self, waiting: Sequence[Waiting], *, now_s: float) -> float | None:
        """Return when the chosen policy wants to be asked again."""
        return self._policies[self._choose()].wake_s(waiting, now_s=now_s)


POLICY_NAMES = ("auto", "continuous", "ping_pong", "synchronous")


def make_policy(
    name: str,
    *,
    row_budget: int = DEFAULT_ROW_BUDGET,
    deadline_s: float = DEFAULT_DEADLINE_S,
    choose: Callable[[], str] | None = None,
    groups: Callable[[], Mapping[int, int]] | None = None,
) -> Policy:
    """Return the policy of that name.

    Args:
        name: one of `POLICY_NAMES`.
        row_budget: token rows in one pass at most; one draft alone may exceed it.
        deadline_s: how long a barrier may hold its oldest draft, in seconds.
        choose: for `auto`, returns the name of the policy to follow; without it, continuous.
        groups: for ping-pong, returns the group (0 or 1) of sessions that have one.

    Raises:
        ValueError: for an unknown name, or a budget or deadline that is not above 0.
    """
    policies: dict[str, Policy] = {
        "continuous": Continuous(row_budget=row_budget),
        "synchronous": Synchronous(deadline_s=deadline_s, row_budget=row_budget),
        "ping_pong": PingPong(deadline_s=deadline_s, row_budget=row_budget, groups=groups),
    }
    if name == "auto":
        return Auto(choose=choose or (lambda: "continuous"), policies=policies)
    if name not in policies:
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(POLICY_NAMES)}")
    return policies[name]


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
