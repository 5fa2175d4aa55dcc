"""Acting outside of the sampler's loop, with the newest of several versions of weights, or an older one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from steppe.seeding import SMALLEST_NOISE
from steppe.spaces import map_leaves
from steppe.types import Array, Decision, Policy, Tree

KEPT = 8
"""Versions of a policy that are kept."""


class Chosen(NamedTuple):
    """What was chosen for ``n`` rows.

    Attributes:
        decision: with the version that acted.
        env_actions: column of actions as the env takes them.
        states: of each row, what its trajectory's next row is met with; a tree of ``(1, ...)``, or None.
    """

    decision: Decision
    env_actions: Tree
    states: list[Tree]


@final
class Actors:
    """The policies of a run with the weights that they act with.

    Any number of threads may act while others publish: who acts takes one whole version.

    Attributes:
        policies: by id; policies may be added to it later.

    Args:
        policies: see there.
        explore: draw actions instead of taking the likeliest.
        rng: to draw from.
    """

    def __init__(self, policies: Mapping[str, Policy], *, explore: bool, rng: np.random.Generator) -> None:
        self.policies, self._explore, self._rng = policies, explore, rng
        self._lock = threading.Lock()  # of those who publish; whoever acts looks once, and at a tuple
        self._kept: dict[str, dict[int, Any]] = {}
        self._now: dict[str, tuple[int, Any]] = {}
        self._pinned: int | None = None

    @property
    def acting(self) -> dict[str, int]:
        """The version that acts, by policy; policies without weights are missing."""
        return {policy: version for policy, (version, _) in self._now.copy().items()}

    @property
    def versions(self) -> dict[str, tuple[int, ...]]:
        """Those that are kept, by policy, in the order in which they were published."""
        with self._lock:
            return {policy: tuple(kept) for policy, kept in self._kept.items()}

    def publish(self, policy: str, weights: Any, version: int) -> None:
        """Act with these weights from now on, unless :meth:`use` says otherwise.

        Args:
            policy: id.
            weights: what the policy's ``load`` made.
            version: their number. The newest is what was published last, whatever its number: a run that goes
                back to a checkpoint counts back, too.
        """
        with self._lock:
            kept = self._kept.setdefault(policy, {})
            kept.pop(version, None)
            kept[version] = weights
            self._settle(policy)
            for older in [*kept][:-KEPT]:
                if older != self._now[policy][0]:
                    del kept[older]

    def use(self, version: int | None) -> None:
        """Act with a version from now on; None: with the newest ones.

        A policy that has no such version acts with its highest one below, or else with its lowest.

        Raises:
            LookupError: no policy has that version.
        """
        with self._lock:
            known = {number for kept in self._kept.values() for number in kept}
            if version is not None and version not in known:
                raise LookupError(f"no version {version}; there are {', '.join(map(str, sorted(known)))}")
            self._pinned = version
            for policy in self._kept:
                self._settle(policy)

    def act(self, policy: str, column: Tree, states: Sequence[Tree]) -> Chosen:
        """Choose an action for each row.

        Args:
            policy: id.
            column: observations ``(n, ...)`` of at least one row.
            states: of each row, as :meth:`initial_state` or the row before gave it.

        Raises:
            BadLeaf: a mask allows nothing.
            LookupError: nothing was published for this policy yet.
        """
        if (now := self._now.get(policy)) is None:
            raise LookupError(f"policy {policy!r} has no weights yet")
        (version, weights), actor = now, self.policies[policy]
        n, noise = len(states), None
        if self._explore or actor.draws:
            drawn = self._rng.random((n, actor.noise_size), np.float32)
            noise = np.maximum(drawn, SMALLEST_NOISE, out=drawn)
        before = states[0]
        if n > 1 and before is not None:
            before = map_leaves(lambda *parts: np.concatenate(parts), *states)
        decision = actor.act(weights, column, before, noise)
        decision = decision._replace(version=np.full(n, version, np.int64))
        after: list[Tree] = [None] * n if decision.state is None else _rows(decision.state, n)
        return Chosen(decision, actor.to_env(decision.action), after)

    def initial_state(self, policy: str) -> Tree:
        """What the first row of a trajectory is met with: a tree of ``(1, ...)``, or None."""
        return self.policies[policy].initial_state(1)

    def _settle(self, policy: str) -> None:
        """Look up what acts."""
        kept = self._kept[policy]
        version = next(reversed(kept))
        if self._pinned is not None:
            version = max((number for number in kept if number <= self._pinned), default=min(kept))
        self._now[policy] = version, kept[version]


def _rows(state: Tree, n: int) -> list[Tree]:
    """Of each row its own copy, so that none keeps the others alive."""

    def row(i: int) -> Tree:
        def own(leaf: Array) -> Array:
            return leaf[i : i + 1].copy()

        return map_leaves(own, state)

    return [row(i) for i in range(n)]
