"""Acting on the newest observations together: what came before is a state of the trajectory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

from steppe.models.framestack import Frames
from steppe.models.sight import without
from steppe.spaces import describe, narrowed
from steppe.types import Decision, FloatArray, Policy, State, Tree, Weights


@final
class FramesPolicy:
    """Hands another policy its stacked observations; see :class:`steppe.types.Policy`.

    To the other's state it adds what :meth:`~steppe.models.framestack.Frames.initial` says.

    Args:
        policy: observes what ``frames`` makes of observations.
        frames: how, of all that envs give.
        critic_only: keys of a Dict observation that acting does not read; they are not stacked.
    """

    def __init__(self, policy: Policy, frames: Frames, critic_only: Collection[str] = ()) -> None:
        acting = without(frames.spec, critic_only)
        self.observation, self.acting, self.action = frames.spec, acting, policy.action
        self.noise_size, self.to_env, self.draws = policy.noise_size, policy.to_env, policy.draws
        self.from_env = policy.from_env
        self._policy, self._frames = policy, frames._replace(spec=acting)
        self.load = policy.load

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`."""
        inner = {key: part for key, part in state.items() if key not in ("frames", "seen")} or None
        seen, after = self._frames.step(narrowed(self.acting, obs), state)
        decision = self._policy.act(weights, seen, inner, noise)
        return decision._replace(state={**(decision.state or {}), **after})

    def initial_state(self, n: int) -> Tree:
        """No frames yet; and the other's state."""
        return {**(self._policy.initial_state(n) or {}), **self._frames.initial(n)}

    def export(self, weights: Weights) -> State:
        """The other's network, and how observations are stacked for it."""
        state = self._policy.export(weights)
        about = {"framestack": self._frames.depth, "unstacked": [*self._frames.keep]}
        return {**state, "network": {**state["network"], "observation": describe(self.acting), **about}}
