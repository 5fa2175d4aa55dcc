"""What an env written in JAX is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from steppe.envs import registry
from steppe.envs.context import EnvContext
from steppe.errors import SpaceError
from steppe.spaces import Spec, map_leaves, spec_of, summary, zeros
from steppe.types import Tree

if TYPE_CHECKING:
    from steppe.jaxenvs.as_gymnasium import JaxGym


class Step(NamedTuple):
    """What one step made; a plain tuple of these does as well.

    Attributes:
        obs: the observation, a value of the space as arrays; the last one of an episode, too.
        state: all that the next step needs, a pytree of arrays.
        reward: one number.
        terminated: whether the episode is over by the env's own rules.
        truncated: whether it is cut by a limit.
        info: a dict of arrays, which compiled rollouts leave out.
    """

    obs: Any
    state: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Mapping[str, Any]


class JaxEnv(ABC):
    """An env as two pure functions, which are compiled: give a subclass, or an object of it, as ``env``.

    The form is that of gymnax's ``reset_env`` and ``step_env``, with two flags instead of one ``done``, and
    without a reset inside the step. An env holds nothing that changes: what does is its state.

    Attributes:
        observation_space: a Gymnasium space.
        action_space: likewise.
        default_params: numbers that both functions are given, a pytree: other values compile nothing anew.
    """

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    default_params: Any = ()

    @abstractmethod
    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """Begin an episode: the first observation, and the state."""

    @abstractmethod
    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> Step | tuple[Any, ...]:
        """One step, never of an episode that is over."""

    def as_gymnasium(self) -> JaxGym:
        """The same as an env of Gymnasium, one step at a time."""
        from steppe.jaxenvs.as_gymnasium import JaxGym

        return JaxGym(self)


def jax_env(env: Any, env_config: Mapping[str, Any]) -> JaxEnv | None:
    """The env in JAX that a setting ``env`` means: an object, or a class under any of its names.

    None where it means anything else, which is not built for that.

    Raises:
        ConfigError: the spelling is unknown, or ``env_config`` does not fit.
    """
    if env is None:
        return None
    if isinstance(env, JaxEnv):
        registry.check(env, env_config)  # an object takes none
        return env
    creator = registry.creator_of(env)
    if not isinstance(creator.creator, type) or not issubclass(creator.creator, JaxEnv):
        return None
    wrapped: JaxGym = creator(EnvContext(env_config))
    return wrapped.env


def checked(env: JaxEnv, params: Any) -> Any:
    """Judge, without a step, what both functions of an env return.

    Returns:
        The shapes and dtypes of the state.

    Raises:
        SpaceError: it is not what its spaces say, or a step makes other things than a reset.
    """
    name, key = type(env).__name__, jax.random.key(0)
    spec = spec_of(env.observation_space)
    obs, state = jax.eval_shape(env.reset_env, key, params)
    actions = zeros(spec_of(env.action_space), 1)
    action = map_leaves(lambda a: jnp.asarray(a[0]), actions)
    step: Any = jax.eval_shape(env.step_env, key, state, action, params)
    if not isinstance(step, tuple) or len(step) != 6:
        came = f"{len(step)} values" if isinstance(step, tuple) else f"a {type(step).__name__}"
        raise SpaceError(
            f"{name}.step_env returns {came}; return (obs, state, reward, terminated, truncated, info)"
        )
    made = Step(*step)
    for where, seen in (("reset_env", obs), ("step_env", made.obs)):
        _check_obs(f"{name}.{where}", seen, spec)
    for what in ("reward", "terminated", "truncated"):
        if (shape := np.shape(getattr(made, what))) != ():
            raise SpaceError(f"{name}.step_env: {what} has shape {shape}; return one number for one env")
    before, after = (jax.tree.map(lambda a: tuple(a.shape), s) for s in (state, made.state))
    if before != after:
        raise SpaceError(f"{name}: a state of shapes {before} at reset becomes {after} in a step")
    return made.state


def _check_obs(where: str, obs: Tree, spec: Spec) -> None:
    came, wanted = jax.tree.map(np.shape, obs), map_leaves(lambda a: a.shape[1:], zeros(spec, 1))
    if came != wanted:
        raise SpaceError(f"{where}: an observation of shape {came}, and the space says {summary(spec)}")
