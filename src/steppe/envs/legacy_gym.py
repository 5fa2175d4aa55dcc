"""Envs with the interface that gym had before 0.26, and envs of no known base class, as Gymnasium envs.

What they do decides, not where they come from: ``reset`` without ``seed``, an observation without an info,
four items out of ``step`` in a tuple or a list, ``seed()``, ``render(mode)``.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, final

import gymnasium
import numpy as np

from steppe import spaces
from steppe.envs.replay import seed_spaces
from steppe.errors import CODES

logger = logging.getLogger("steppe.envs")

_told: set[type] = set()


def modernize(env: Any) -> gymnasium.Env[Any, Any]:
    """The env itself if it is a modern Gymnasium env, else adapted to be one.

    Modern wrappers stay where they are; what is old inside them is replaced in place.
    """
    parent, layer = None, env
    while isinstance(layer, gymnasium.Wrapper) and not _old_reset(layer):
        parent, layer = layer, layer.env
    if _old_reset(layer):
        _tell(layer)
    elif isinstance(layer, gymnasium.Env):
        modern: gymnasium.Env[Any, Any] = env
        return modern
    adapted = LegacyGym(layer)
    if parent is None:
        return adapted
    parent.env = adapted
    wrapped: gymnasium.Env[Any, Any] = env
    return wrapped


def modern_step(result: Any) -> Any:
    """Five items out of four; whatever else comes is passed on to be judged.

    ``info["TimeLimit.truncated"]`` makes a done episode truncated, otherwise it is terminated.
    """
    if not isinstance(result, (tuple, list)):
        return result
    if len(result) != 4:
        return tuple(result)
    obs, reward, done, info = result
    if isinstance(done, (bool, int, np.bool_, np.integer)) and done in (0, 1):
        done = bool(done)  # old envs count flags as 0 and 1: nothing to report
        if done and isinstance(info, dict) and info.get("TimeLimit.truncated", False):
            return obs, reward, False, True, info
    return obs, reward, done, False, info


@final
class LegacyGym(gymnasium.Env[Any, Any]):
    """Any object with ``reset``, ``step`` and spaces, as a Gymnasium env.

    ``unwrapped`` is the inner env's own. The first ``reset(seed=...)`` reaches old envs as ``seed()``; one
    without gets its ``np_random`` seeded, and so does an env that it holds as ``self.env``.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        # Own copies: old classes often share one space between all their instances, generator included.
        self.observation_space = deepcopy(modern_space(getattr(env, "observation_space", None)))
        self.action_space = deepcopy(modern_space(getattr(env, "action_space", None)))
        self.metadata = getattr(env, "metadata", None) or {}
        self.render_mode = getattr(env, "render_mode", None)
        self.spec = getattr(env, "spec", None)
        self._reset_takes = _takes(env)

    def __getattr__(self, name: str) -> Any:
        """What the env has beside Gymnasium's interface, as callbacks ask for it: ``env.set_phase(1)``."""
        if name.startswith("_") or name == "env":  # copies are asked for these before they hold an env
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    @property
    def unwrapped(self) -> Any:
        """The innermost env."""
        return getattr(self.env, "unwrapped", self.env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Seed the env if ``seed`` is given, reset it, and give back observation and info."""
        keywords: dict[str, Any] = {}
        if seed is not None:
            if self._reset_takes & {"seed", "**"}:
                keywords["seed"] = seed
            else:
                self._seed(seed)
        if options is not None and self._reset_takes & {"options", "**"}:
            keywords["options"] = options
        return self._pair(self.env.reset(**keywords))

    def step(self, action: Any) -> Any:
        """Five items, if the env gave four or five. Old programs count on Python's integers."""
        return modern_step(self.env.step(int(action) if isinstance(action, np.integer) else action))

    def render(self) -> Any:
        """Render in the mode that the env was made with, ``"human"`` where it takes one and none is set."""
        render = getattr(self.env, "render", None)
        if render is None:
            return None
        return render(mode=self.render_mode or "human") if "mode" in _parameters(render) else render()

    def close(self) -> None:
        """Close the env, if it can be."""
        close = getattr(self.env, "close", None)
        if close is not None:
            close()

    def _seed(self, seed: int) -> None:
        layers = list(_layers(self.env))
        for layer in layers:
            seed_spaces(layer, seed)
        for layer in (*layers, self.unwrapped):
            if callable(getattr(layer, "seed", None)):
                layer.seed(seed)
                return
        if isinstance(self.unwrapped, gymnasium.Env):
            gymnasium.Env.reset(self.unwrapped, seed=seed)  # only sets its np_random
        inside = getattr(self.env, "env", None)
        if isinstance(inside, gymnasium.Env):
            inside.reset(seed=seed)

    def _pair(self, result: Any) -> tuple[Any, dict[str, Any]]:
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
            space = self.observation_space
            pair_space = isinstance(space, gymnasium.spaces.Tuple) and len(space.spaces) == 2
            if not (pair_space and spaces.contains(spaces.spec_of(space), result)):
                return result
        return result, {}


def modern_space(space: Any) -> Any:
    """A Gymnasium space for one of the same class name out of another package; others as they are."""
    if space is None or isinstance(space, gymnasium.Space):
        return space
    names = {cls.__name__ for cls in type(space).__mro__}
    return next((make(space) for name, make in _SPACES.items() if name in names), space)


def _box(space: Any) -> gymnasium.Space[Any]:
    spec = spaces.spec_of(space)  # it knows what to do with infinite bounds of integers
    assert isinstance(spec, spaces.BoxSpec)
    return gymnasium.spaces.Box(spec.low, spec.high, spec.shape, spec.dtype.type)


def _dict(space: Any) -> gymnasium.Space[Any]:
    return gymnasium.spaces.Dict({key: modern_space(part) for key, part in space.spaces.items()})


_SPACES: dict[str, Callable[[Any], gymnasium.Space[Any]]] = {
    "Box": _box,
    "Discrete": lambda space: gymnasium.spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0))),
    "MultiDiscrete": lambda space: gymnasium.spaces.MultiDiscrete(np.asarray(space.nvec)),
    "MultiBinary": lambda space: gymnasium.spaces.MultiBinary(space.n),
    "Dict": _dict,
    "Tuple": lambda space: gymnasium.spaces.Tuple([modern_space(part) for part in space.spaces]),
}


def _old_reset(env: Any) -> bool:
    # A modern wrapper that hands on whatever it gets stays; the old env inside it is adapted instead.
    takes = _parameters(env.reset) if isinstance(env, gymnasium.Wrapper) else _takes(env)
    if "return_info" in takes:  # gym 0.22 to 0.25: seed, but an observation alone
        return True
    return "seed" not in takes and "**" not in takes


def _layers(env: Any) -> Iterator[Any]:
    """The env, the one that it holds as ``env``, and so on inwards."""
    seen: set[int] = set()
    while env is not None and id(env) not in seen:
        seen.add(id(env))
        yield env
        env = getattr(env, "env", None)


def _takes(env: Any) -> set[str]:
    """What ``env.reset`` takes; where it hands on all keywords, what the env inside takes, too."""
    names: set[str] = set()
    for layer in _layers(env):
        if not callable(getattr(layer, "reset", None)):
            break
        names = (names - {"**"}) | _parameters(layer.reset)
        if "**" not in names:
            break
    return names


def _parameters(method: Any) -> set[str]:
    """Names of a method's parameters; ``"**"`` if it takes any keyword or cannot be looked into."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return {"**"}
    return {"**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters}


def _tell(env: Any) -> None:
    kind = type(env)
    if kind not in _told:
        _told.add(kind)
        logger.warning(
            "E401 %s: %s (its reset takes no seed; from now on it is seeded once, before its first reset)",
            *(CODES["E401"], kind.__name__),
        )
