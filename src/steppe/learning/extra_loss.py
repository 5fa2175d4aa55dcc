"""The setting ``extra_loss``: what a function of the user's adds to the loss of each minibatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.models.catalog import ActorCritic


@final
class _Batch(dict[str, Any]):
    """The columns that an ``extra_loss`` reads."""

    def __missing__(self, name: Any) -> Any:
        raise ConfigError(
            f"extra_loss reads batch[{name!r}], and there are {', '.join(sorted(self))}; "
            "postprocess_trajectory can add it"
        )


def extra_of(function: Callable[..., Any], model: ActorCritic, rows: Mapping[str, Any]) -> jax.Array:
    """``()``, what it gives for these rows.

    Raises:
        ConfigError: it is not one number, or it reads a column that is not there.
    """
    names = {"action": "actions", "logp": "action_logp", "advantage": "advantages", "target": "value_targets"}
    given = function(model, _Batch({names.get(name, name): rows[name] for name in rows}))
    if not isinstance(given, jax.Array | np.ndarray | np.number | int | float):
        raise ConfigError(f"extra_loss gave {given!r:.60}: it must be one number")
    extra = jnp.asarray(given)
    if extra.shape:
        raise ConfigError(f"extra_loss gave an array of shape {extra.shape}: it must be one number")
    return extra
