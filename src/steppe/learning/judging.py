"""What the critic of an on-policy learner makes of single observations."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from steppe.errors import ConfigError
from steppe.learning.normalizer import deviation
from steppe.learning.on_policy import LearnerState, Static
from steppe.models.encoders import normalize
from steppe.spaces import leaves, take
from steppe.types import FloatArray, Tree


@lru_cache(maxsize=64)
def _compiled(static: Static) -> Any:
    """Values of observations, in the unit of the rewards."""

    def values(state: LearnerState, obs: Tree) -> jax.Array:
        if state.normalizer:
            obs = normalize(static.observation, state.normalizer, obs)
        scale = deviation(state.return_scale) if static.scale_rewards else 1.0
        value: jax.Array = jax.vmap(static.layout.unravel(state.params).value)(obs) * scale
        return value

    return jax.jit(values)


def judged(static: Static, state: LearnerState, obs: Tree) -> FloatArray:
    """Values ``(n,)`` of observations ``(n, ...)``, in the unit of the rewards.

    Raises:
        ConfigError: it needs to know what came before them.
    """
    if static.frames is not None or static.length:
        raise ConfigError(
            "the critic judges observations with what came before them (framestack, memory), and single "
            "ones are not enough; leave that out, or let the function do without the critic's values"
        )
    n = len(leaves(obs)[0])
    index = np.minimum(np.arange(1 << (n - 1).bit_length()), n - 1)  # padded: else every size compiles anew
    found: FloatArray = np.asarray(_compiled(static)(state, take(obs, index)))[:n]
    return found
