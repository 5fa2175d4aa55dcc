"""Programs written for RLlib 1.x and gym, run with only their import lines changed.

The modules have the names and the layout of the originals and are thin spelling over steppe's own objects;
most of them are only tables in ``present.toml``.
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

from steppe.compat.absent import Missing, mirror

sys.meta_path.append(Missing)  # after all others: what they find is there
__getattr__ = mirror(__name__, DefaultCallbacks="steppe.compat.callbacks:DefaultCallbacks")
