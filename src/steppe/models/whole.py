"""Policy and value by one module of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.models.custom import Own, check_number, check_vector, made
from steppe.models.distributions import Distribution, legal
from steppe.models.observations import MASK
from steppe.spaces import Spec
from steppe.types import Tree

_ROLE = "actor_critic"


@final
class OwnActor(eqx.Module):
    """The whole module, of which acting drops the value.

    Attributes:
        own: the user's; gives a vector and a value.
        log_std: parameters that no network gives, see :class:`~steppe.models.catalog.Actor`.
        masked: observations have a mask of the actions.
    """

    own: Own
    log_std: jax.Array | None
    masked: bool = eqx.field(static=True)

    def both(self, obs: Tree) -> tuple[jax.Array, jax.Array]:
        """``(params (P,), value ())`` of one observation."""
        params, value = self.own(obs)
        if self.masked:
            params = legal(params, obs[MASK])
        return params if self.log_std is None else jnp.concatenate([params, self.log_std]), value

    def __call__(self, obs: Tree) -> jax.Array:
        """Distribution parameters ``(P,)`` of one observation; compiled, the value costs nothing."""
        return self.both(obs)[0]

    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values."""
        return {"encoder": {"kind": "custom", "name": self.own.name, "role": _ROLE}}


@final
class OwnActorCritic(eqx.Module):
    """What :class:`~steppe.models.catalog.ActorCritic` is, by one module."""

    actor: OwnActor

    def value(self, obs: Tree) -> jax.Array:
        """``()`` value of one observation."""
        return self.actor.both(obs)[1]

    def __call__(self, obs: Tree) -> tuple[jax.Array, jax.Array]:
        """``(params (P,), value ())`` of one observation."""
        return self.actor.both(obs)


def make_whole(
    build: Callable[..., Any],
    obs_spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    *,
    critic_spec: Spec,
    masked: bool = False,
    free_log_std: bool = True,
    initial_log_std: float = 0.0,
    memory: Any = None,
    encoder: Any = None,
    embeddings: Any = None,
    share_layers: bool = False,
    **layers: Any,
) -> OwnActorCritic:
    """Make the user's module; arguments as of :func:`~steppe.models.catalog.make_actor_critic`.

    Args:
        build: the class; called with the observation space, how many numbers are wanted of it, and a key.
        obs_spec: what it sees.
        distribution: of the actions.
        rng: draws the key.
        critic_spec: must be the same as ``obs_spec``.
        masked: the observation has a mask of the actions beside that.
        free_log_std: log standard deviations are parameters of their own, not wanted of the module.
        initial_log_std: their value before training.
        memory: must be None; likewise ``encoder``, ``embeddings`` and ``share_layers``.
        encoder: see there.
        embeddings: see there.
        share_layers: see there.
        layers: settings that shape the built-in networks, and have no effect here.

    Raises:
        ConfigError: a setting that one module cannot follow, or what it gives does not fit.
    """
    unlike = {
        "memory": memory is not None,
        'models["encoder"]': encoder is not None,
        "action_embeddings": embeddings is not None,
        "vf_share_layers": share_layers,
        "critic_only": critic_spec != obs_spec,
    }
    for setting in [name for name, given in unlike.items() if given]:
        raise ConfigError(
            f"models[{_ROLE!r}] is the whole network, so that {setting} has nothing to act on; leave it out, "
            'or write models={"encoder": ...}, around which the rest is built'
        )
    initial = np.full(distribution.log_std_size if free_log_std else 0, initial_log_std, np.float32)
    free = np.concatenate([initial, distribution.weights(rng)])
    size = distribution.param_size - len(free)
    own, given = made(_ROLE, build, obs_spec, rng, size)
    if not isinstance(given, tuple) or len(given) != 2:
        raise ConfigError(
            f"models[{_ROLE!r}]={own.name} makes a {type(given).__name__} of one observation; return "
            f"(vector of {size} numbers, value)"
        )
    check_vector(_ROLE, own, given[0], size)
    check_number(_ROLE, own, given[1])
    return OwnActorCritic(OwnActor(own, jnp.asarray(free) if len(free) else None, masked))
