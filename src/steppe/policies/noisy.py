"""Acting with noise on top of what a policy would do."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, final

import numpy as np

from steppe.models.actions import SQUASH_EDGE, Actions
from steppe.types import Decision, FloatArray, Policy, State, Tree, Weights

_normal = np.vectorize(NormalDist().inv_cdf, otypes=[np.float32])  # numpy has no inverse of the normal


@final
class NoisyPolicy:
    """Adds normal noise to squashed actions, in units in which the env's bounds are -1 and 1.

    White noise where ``correlation`` is 0; otherwise an Ornstein-Uhlenbeck process, sampled at every row: its
    deviation is ``deviation``, too, and ``correlation`` is that of two rows that follow each other. While the
    weights' scalar ``random`` is not 0, actions are uniform instead.

    See :class:`steppe.types.Policy`; what is sampled stays in policy units, before the squash.

    Args:
        policy: whose actions all are bounded and squashed.
        actions: the layout of its actions.
        deviation: of the noise.
        correlation: see above; below 1.
        draws: the policy's own actions are sampled, too, where anything is explored.
    """

    def __init__(
        self,
        policy: Policy,
        actions: Actions,
        *,
        deviation: float,
        correlation: float,
        draws: bool,
    ) -> None:
        self.observation, self.acting, self.action = policy.observation, policy.acting, policy.action
        self.to_env: Callable[[Tree], Tree] = policy.to_env
        self.from_env: Callable[[Tree], Tree] = policy.from_env
        self._policy, self._actions, self._draws, self.draws = policy, actions, draws, False
        self._deviation, self._correlation = deviation, correlation
        self._size = actions.noise_size
        self.noise_size = 2 * self._size if draws else self._size

    def load(self, weights: Weights) -> Any:
        """The policy's own, and whether to act by chance."""
        return self._policy.load(weights), bool(weights.scalars.get("random", 0.0))

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`."""
        own, random = weights
        if noise is None:
            return self._policy.act(own, obs, None, None)._replace(state=state)
        decision = self._policy.act(own, obs, None, noise[:, self._size :] if self._draws else None)
        drawn = noise[:, : self._size]
        if random:
            return decision._replace(action=self._units(2.0 * drawn - 1.0), state=state)
        shock = self._deviation * _normal(drawn)
        if state is not None:
            shock = self._correlation * state["noise"] + np.float32((1 - self._correlation**2) ** 0.5) * shock
            state = {"noise": shock}
        chosen = np.concatenate(
            [np.tanh(a).reshape(len(a), -1) for a in self._actions.flat(decision.action)], axis=1
        )
        return decision._replace(action=self._units(np.clip(chosen + shock, -1.0, 1.0)), state=state)

    def _units(self, squashed: FloatArray) -> Tree:
        """Squashed elements ``(n, K)`` as a column of actions in policy units."""
        x = np.arctanh(np.clip(squashed, -SQUASH_EDGE, SQUASH_EDGE)).astype(np.float32)
        leaves = zip(self._actions.leaves, self._actions.cuts, strict=True)
        return self._actions.tree([x[:, cut].reshape(len(x), *leaf.shape) for leaf, (_, _, cut) in leaves])

    def initial_state(self, n: int) -> Tree:
        """The process begins at 0."""
        return {"noise": np.zeros((n, self._size), np.float32)} if self._correlation else None

    def export(self, weights: Weights) -> State:
        """The policy, and the noise."""
        about = {"deviation": self._deviation, "correlation": self._correlation, "draws": self._draws}
        return {**self._policy.export(weights), "exploration": {"kind": "added_noise", **about}}
