"""Updates that were undone because their numbers were not finite, and when that is no accident any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from steppe.spaces import leaves
from steppe.types import Rollout

MOST = 10
"""Updates in a row that are undone before the run stops."""


@final
@dataclass(slots=True)
class Undone:
    """The updates of a policy that were undone, one after the other.

    Attributes:
        iteration: of the first.
        env_steps: sampled until then.
        count: of them.
        reward: largest size of a reward since then.
        obs: of an element of an observation.
    """

    iteration: int
    env_steps: int
    count: int = 0
    reward: float = 0.0
    obs: float = 0.0

    def saw(self, rollout: Rollout) -> None:
        """Measure a fragment of experience."""
        self.reward = max(self.reward, _size(rollout.reward[rollout.filled]))
        sizes = [_size(leaf[rollout.filled]) for leaf in leaves(rollout.obs)]
        self.obs = max(self.obs, *sizes)

    def report(self, id: str) -> str:
        """What stopped the run of policy ``id``, and what to do."""
        since = f"since iteration {self.iteration} ({self.env_steps:,} env steps)"
        sizes = f"rewards were up to {self.reward:.3g} and observations up to {self.obs:.3g} in size"
        return (
            f"policy {id!r} learns nothing {since}: {self.count} updates in a row gave numbers that are not "
            f"finite and were undone; since then {sizes}. Scale huge rewards down in the env "
            "(gymnasium.wrappers.TransformReward), keep observations within some thousands, or lower lr and "
            "grad_clip. The weights are those from before: checkpoints stay good, and save() still works"
        )


def _size(values: np.ndarray) -> float:
    return float(np.abs(values.astype(np.float64)).max(initial=0.0))
