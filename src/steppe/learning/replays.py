"""What off-policy learners remember: rows, or sequences of them, drawn evenly or by priority."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steppe.buffers.prioritized import Prioritized
from steppe.buffers.replay import Replay
from steppe.buffers.sequences import Sequences
from steppe.errors import ConfigError
from steppe.learning.off_policy import Priorities
from steppe.learning.schedules import Schedule

_MIX = 0.9  # eta of the R2D2 paper


class Lengths(NamedTuple):
    """Of sequences: rows that are learned from, after those of the burn-in."""

    length: int
    burn_in: int


def make_replay(
    capacity: int,
    *,
    n_step: int,
    gamma: float,
    framestack: int = 1,
    sequences: Lengths | None = None,
    priorities: tuple[float, float, Schedule] | None = None,
) -> tuple[Any, Priorities | None]:
    """A buffer, and what tells it how wrong its rows were.

    Args:
        capacity: rows that are held.
        n_step: rewards that are summed.
        gamma: discount of a row.
        framestack: observations that are seen together.
        sequences: of networks that remember; None draws rows by themselves.
        priorities: alpha, eps and beta of a prioritized replay; None draws evenly.

    Raises:
        ConfigError: there is no room for a sequence.
    """
    given: dict[str, Any] = {"n_step": n_step, "gamma": gamma, "framestack": framestack}
    replay: Replay | Sequences
    if sequences is None:
        replay = Replay(capacity, **given)
    else:
        replay = Sequences(capacity, **sequences._asdict(), **given)
        if capacity < 2 * replay.rows:
            raise ConfigError(
                f"replay_buffer_capacity={capacity} is too little for sequences of {replay.rows} rows "
                "(burn_in, max_seq_len and n_step together): give it room for thousands"
            )
    if priorities is None:
        return replay, None
    alpha, eps, beta = priorities
    drawn = Prioritized(replay, alpha=alpha, eps=eps)
    return drawn, Priorities(drawn.update, beta)


def by_sequence(error: jax.Array, learned: jax.Array) -> jax.Array:
    """How wrong sequences were ``(s,)``, of the errors of their rows ``(s, l)``: mostly the largest one.

    ``0.9 max + 0.1 mean`` of the absolute errors of rows that were learned from (Kapturowski et al., 2019).
    """
    size = jnp.where(learned, jnp.abs(error), 0.0)
    mean = size.sum(1) / jnp.maximum(learned.sum(1), 1)
    return _MIX * size.max(1) + (1.0 - _MIX) * mean
