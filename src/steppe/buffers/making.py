"""What learners remember: rows, or sequences of them, drawn evenly or by priority."""

from __future__ import annotations

from typing import Any, NamedTuple

from steppe.buffers.prioritized import Prioritized
from steppe.buffers.replay import Replay
from steppe.buffers.sequences import Sequences
from steppe.errors import ConfigError


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
    priorities: tuple[float, float] | None = None,
) -> Replay | Sequences | Prioritized:
    """A buffer.

    Args:
        capacity: rows that are held.
        n_step: rewards that are summed.
        gamma: discount of a row.
        framestack: observations that are seen together.
        sequences: of networks that remember; None draws rows by themselves.
        priorities: alpha and eps of a :class:`~steppe.buffers.prioritized.Prioritized`; None draws evenly.

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
    return replay if priorities is None else Prioritized(replay, alpha=priorities[0], eps=priorities[1])
