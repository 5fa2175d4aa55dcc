"""Acting with an actor that remembers: what it remembers goes in and comes out with every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, final

import jax
import numpy as np

from steppe.models.before import repeated
from steppe.models.distributions import Distribution
from steppe.models.encoders import normalize
from steppe.models.memory import MemoryActor
from steppe.models.observations import Sight
from steppe.policies.actor_critic import Layout, exported
from steppe.spaces import Spec, is_wide, leaves, map_leaves, narrowed, take
from steppe.types import Decision, FloatArray, State, Tree, Weights


@final
class RecurrentPolicy:
    """Acts with the actor of an actor-critic that remembers; see :class:`steppe.types.Policy`.

    Its state is a dict: ``memory``, of the actor's cell; where they are asked for ``action``, that was chosen
    before, in policy units, and ``reward`` ``(n,)``, which came with the row and which whoever acts writes
    into it. All of it is zeros for a fresh trajectory.

    Args:
        sight: what it observes, and what acting sees of that.
        distribution: of its actions.
        layout: of ``(actor, normalizer)`` in the flat weights; the normalizer is empty when there is none.
        actor: of this layout.
    """

    def __init__(self, sight: Sight, distribution: Distribution, layout: Layout, actor: MemoryActor) -> None:
        self.observation, self.acting, self.action = sight.whole, sight.acting, distribution.spec
        self.noise_size, self.to_env = distribution.noise_size, distribution.to_env
        self.from_env = distribution.from_env
        self._sample, self._mode = _compiled(sight.actor, distribution, layout)
        self._options, self._layout = distribution.options, layout
        self.draws = False
        self._wide, self._sight = is_wide(sight.acting), sight
        self._read: Callable[[Tree], Tree] | None = None
        if sight.masked or sight.critic_only:
            from steppe.models.sight import read

            self._read = partial(read, sight, distribution.actions)
        self._initial = fresh_state(distribution, actor)

    def load(self, weights: Weights) -> Any:
        """See :meth:`~steppe.policies.actor_critic.Layout.loaded`."""
        return self._layout.loaded(weights)

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`.

        Raises:
            BadLeaf: the mask of a row allows nothing.
        """
        if self._read is not None:
            obs = self._read(obs)
        if self._wide:
            obs = narrowed(self.acting, obs)
        return remembered(self._sample, self._mode, self._initial, weights, obs, state, noise)

    def initial_state(self, n: int) -> Tree:
        """Zeros."""
        return repeated(self._initial, n)

    def export(self, weights: Weights) -> State:
        """What a :class:`~steppe.policies.numpy_policy.NumpyPolicy` is made of."""
        actor = self._layout.unravel(self._layout.flat(weights))[0]
        return exported(self._sight, self.action, self._options, actor, weights, actor.describe())


def remembered(
    sample: Callable[..., Any],
    mode: Callable[..., Any],
    initial: Mapping[str, Tree],
    weights: Any,
    obs: Tree,
    state: Tree,
    noise: FloatArray | None,
) -> Decision:
    """What compiled functions choose for ``n`` rows, and the state behind them, with the keys of ``initial``.

    Args:
        sample: of weights, observations, state and noise: actions, log-probabilities and memory.
        mode: the same without noise.
        initial: the state of one fresh trajectory.
        weights: see :meth:`steppe.types.Policy.act`; likewise the others.
        obs: likewise.
        state: likewise.
        noise: likewise.
    """
    n = len(leaves(obs)[0])
    padded = 1 << (n - 1).bit_length()  # ragged batches, padded: else every size compiles anew
    if padded != n:
        index = np.minimum(np.arange(padded), n - 1)
        obs, state, noise = take(obs, index), take(state, index), noise if noise is None else noise[index]
    made = mode(weights, obs, state) if noise is None else sample(weights, obs, state, noise)
    action, logp, memory = map_leaves(lambda a: np.asarray(a)[:n], made)
    after = {"memory": memory, "action": action, "reward": np.zeros(n, np.float32)}
    return Decision(action, logp, {name: after[name] for name in initial})


def fresh_state(distribution: Distribution, actor: MemoryActor) -> dict[str, Tree]:
    """What one fresh trajectory is met with."""
    torso = actor.torso
    state = {"memory": torso.cell.initial()}
    if torso.action is not None:
        nothing = np.zeros(distribution.param_size, np.float32)
        chosen = jax.eval_shape(distribution.mode, nothing)
        state["action"] = map_leaves(lambda a: np.zeros(a.shape, a.dtype), chosen)
    return {**state, "reward": np.zeros((), np.float32)} if torso.reward else state


@lru_cache(maxsize=64)
def _compiled(observation: Spec, distribution: Distribution, layout: Layout) -> tuple[Any, Any]:
    """The two acting functions of a structure, shared by all policies that have it."""

    def head(weights: Any, obs: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        ((actor, stats),) = layout.read(weights)
        if stats:
            obs = normalize(observation, stats, obs)
        answer: tuple[jax.Array, Tree] = jax.vmap(actor)(obs, state)
        return answer

    def sample(weights: Any, obs: Tree, state: Tree, noise: jax.Array) -> tuple[Tree, jax.Array, Tree]:
        params, memory = head(weights, obs, state)
        action = distribution.sample(params, noise)
        return action, distribution.logp(params, action), memory

    def mode(weights: Any, obs: Tree, state: Tree) -> tuple[Tree, jax.Array, Tree]:
        params, memory = head(weights, obs, state)
        action = distribution.mode(params)
        return action, distribution.logp(params, action), memory

    return jax.jit(sample), jax.jit(mode)
