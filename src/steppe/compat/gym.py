"""Mirrors ``gym`` 0.21 over Gymnasium.

Its ``Env`` and wrappers give four items out of ``step``, an observation out of ``reset``, and
have ``seed()``.
"""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from typing import Any, final

import gymnasium

from steppe.compat.absent import mirror
from steppe.compat.generators import np_random
from steppe.envs.legacy_gym import modern_step
from steppe.envs.replay import first_obs

__all__ = ["ActionWrapper", "Env", "ObservationWrapper", "RewardWrapper", "Wrapper"]
__version__ = "0.21.0"
"""The newest one in which ``step``, ``reset`` and ``seed`` are as they are here."""
__getattr__ = mirror(__name__)
_logger = logging.getLogger("gym")


class Env(gymnasium.Env[Any, Any]):
    """Base class of envs: Gymnasium's, with the ``seed`` that every old one has."""

    def seed(self, seed: int | None = None) -> list[int]:
        """Make ``np_random`` anew from ``seed``, also in an env held as ``self.env``; gives ``[seed]``."""
        rng, used = np_random(seed)
        self.np_random = rng  # type: ignore[assignment]  # the generator that old programs know
        inside = getattr(vars(self).get("env"), "seed", None)
        if callable(inside):
            inside(used)
        return [used]


class Wrapper(Env):
    """An env around another, whose attributes it shows as its own. As in gym, made to be overridden."""

    def __init__(self, env: Any) -> None:
        self.env = env
        for name in ("metadata", "render_mode", "spec"):  # these have a value in every class
            setattr(self, name, getattr(env, name, None))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    @property
    def unwrapped(self) -> Any:
        """The innermost env."""
        return getattr(self.env, "unwrapped", self.env)

    def reset(self) -> Any:  # type: ignore[override]  # the old interface
        """Reset the env."""
        return self.env.reset()

    def step(self, action: Any) -> Any:
        """Step the env."""
        return self.env.step(action)

    def render(self, mode: str = "human", **kwargs: Any) -> Any:
        """Render in this mode; Gymnasium's envs are told it by attribute."""
        if "mode" in inspect.signature(self.env.render).parameters:
            return self.env.render(mode=mode, **kwargs)
        self.unwrapped.render_mode = mode
        return self.env.render()

    def close(self) -> None:
        """Close the env, if it can be."""
        getattr(self.env, "close", lambda: None)()


class ObservationWrapper(Wrapper):
    """Around an env; ``observation(observation)``, which is yours, changes its observations."""

    @abstractmethod
    def observation(self, observation: Any) -> Any:
        """The changed observation."""

    def reset(self) -> Any:  # type: ignore[override]  # the old interface
        """Reset the env."""
        return self.observation(self.env.reset())

    def step(self, action: Any) -> Any:
        """Step the env."""
        observation, *rest = self.env.step(action)
        return self.observation(observation), *rest


class RewardWrapper(Wrapper):
    """Around an env; ``reward(reward)``, which is yours, changes its rewards."""

    @abstractmethod
    def reward(self, reward: Any) -> Any:
        """The changed reward."""

    def step(self, action: Any) -> Any:
        """Step the env."""
        observation, reward, *rest = self.env.step(action)
        return observation, self.reward(reward), *rest


class ActionWrapper(Wrapper):
    """Around an env; ``action(action)``, which is yours, changes the actions that it gets."""

    @abstractmethod
    def action(self, action: Any) -> Any:
        """The changed action."""

    def step(self, action: Any) -> Any:
        """Step the env."""
        return self.env.step(self.action(action))


@final
class OldInterface(Wrapper):
    """Any env, with the interface that gym had before 0.26, and a limit on its steps.

    A limit that is reached gives ``done`` with ``info["TimeLimit.truncated"]``, as gym's own did.

    Args:
        env: old or modern.
        max_episode_steps: ends an episode; None leaves it to the env.
    """

    def __init__(self, env: Any, max_episode_steps: int | None = None) -> None:
        super().__init__(env)
        self._max_episode_steps, self._elapsed_steps = max_episode_steps, 0
        self._seed: int | None = None

    def reset(self) -> Any:  # type: ignore[override]  # the old interface
        """The first observation."""
        keywords = {} if self._seed is None else {"seed": self._seed}
        self._elapsed_steps, self._seed = 0, None
        return first_obs(self.env.reset(**keywords))

    def step(self, action: Any) -> Any:
        """Observation, reward, done, info."""
        obs, reward, terminated, truncated, info = modern_step(self.env.step(action))
        self._elapsed_steps += 1
        limit = self._max_episode_steps
        truncated = bool(truncated) or (limit is not None and self._elapsed_steps >= limit and not terminated)
        if truncated:
            info = {**info, "TimeLimit.truncated": not terminated}
        return obs, reward, bool(terminated) or truncated, info

    def seed(self, seed: int | None = None) -> list[int]:
        """Seed the env: at once if it has ``seed()``, else at its next reset."""
        own = getattr(self.env, "seed", None)
        if callable(own):
            return own(seed)  # type: ignore[no-any-return]
        _, self._seed = np_random(seed)
        return [self._seed]
