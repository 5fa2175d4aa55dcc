"""Programs written for RLlib 1.x and gym, run with only their import lines changed.

The modules have the names and the layout of the originals and are thin spelling over steppe's own objects.
One rule turns every import line: ``ray`` and ``gym`` are found under ``steppe.compat``.

======================================== ======================================================
``import gym``                           ``from steppe.compat import gym``
``from gym.utils import seeding``        ``from steppe.compat.gym.utils import seeding``
``import ray``                           ``from steppe.compat import ray``
``import ray.rllib.agents.ppo as ppo``   ``import steppe.compat.ray.rllib.agents.ppo as ppo``
``from ray.tune.registry import ...``    ``from steppe.compat.ray.tune.registry import ...``
======================================== ======================================================

``steppe.compat.agents`` and ``steppe.compat.tune`` are shorter names for the two that are used most.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from steppe.compat.absent import Missing, of_module

if TYPE_CHECKING:
    from steppe.compat.callbacks import DefaultCallbacks

__all__ = ["DefaultCallbacks"]


_missing = of_module(__name__)
sys.meta_path.append(Missing)  # after all others: it finds nothing, and says so


def __getattr__(name: str) -> Any:
    """Load the callbacks on first use: ``from steppe.compat import gym`` needs none of them."""
    if name == "DefaultCallbacks":
        from steppe.compat.callbacks import DefaultCallbacks

        return DefaultCallbacks
    return _missing(name)
