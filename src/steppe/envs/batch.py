"""Vector envs by one interface: steppe's own kind, which is asked for each reset, and Gymnasium's three.

Nothing is judged here but the form of what comes; the adapter judges the values and names their place.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformObservation

from steppe import spaces
from steppe.envs.batch_values import BadResult, are_infos, batched, check_order, kind_of, over_envs
from steppe.envs.guards import own, show
from steppe.envs.replay import seed_spaces
from steppe.errors import ConfigError
from steppe.spaces import OneOfSpec, SequenceSpec, Spec, TupleSpec
from steppe.types import IntArray, Tree

logger = logging.getLogger("steppe.envs")


class Stepped(NamedTuple):
    """What one step of a vector env returned; each item is over the n envs."""

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    infos: Any


class Batch(ABC):
    """A vector env.

    Attributes:
        env: the user's object.
        num_envs: how many envs it steps.
        subs: the envs inside it that it shows, or none.
        names: class of each env, for messages.
        listed: lists and tuples that it returns are over its envs; otherwise they have the form of its space.
        mode: when an ended env is reset: DISABLED means when it is asked to.
        can_reset: it can be asked to reset some of its envs.
        odd: said and counted by the adapter: ``(code, leaf, text)``.
        space_pair: observation and action space of one env, None where there is none.
    """

    env: Any
    num_envs: int
    subs: list[Any]
    names: str | list[str]
    listed: bool
    mode: AutoresetMode
    can_reset: bool
    odd: list[tuple[str, str, str]]
    space_pair: tuple[Any, Any]

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Seed and reset all envs: their observations and infos."""

    @abstractmethod
    def reset_some(self, envs: IntArray) -> tuple[Any, Any]:
        """Reset some envs: observations and infos over all n, of which the others do not matter."""

    @abstractmethod
    def step(self, spec: Spec, actions: Tree) -> Stepped:
        """Step all envs with a column of actions."""


@final
class OwnBatch(Batch):
    """A :class:`~steppe.envs.vector.VectorEnv`, in today's or the older spelling."""

    def __init__(self, env: Any, observation: Callable[[], Spec]) -> None:
        self.env, self.num_envs, self.subs = env, int(env.num_envs), list(env.get_sub_environments() or ())
        self.names, self.listed, self.can_reset = type(env).__name__, True, True
        self.mode = AutoresetMode.DISABLED
        self.odd: list[tuple[str, str, str]] = []
        self._observation = observation
        self.space_pair = getattr(env, "observation_space", None), getattr(env, "action_space", None)

    def reset(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Seed and reset all envs."""
        seed_spaces(self.env, seeds[0])
        self._seed_subs(seeds)
        takes = _parameters(self.env.vector_reset)
        if takes & {"seeds", "**"}:
            result = self.env.vector_reset(seeds=list(seeds))
        elif _parameters(self.env.reset_at) & {"seed", "**"}:
            return self._each(enumerate(seeds))
        else:
            if not self.subs:
                text = "neither vector_reset takes seeds nor reset_at a seed: its envs are not seeded"
                self.odd.append(("E401", "seed", text))
            result = self.env.vector_reset()
        if not self._has_infos(result):
            self.odd.append(("E401", "reset", "vector_reset returned observations without infos"))
            result = result, [{} for _ in seeds]
        obs, infos = result
        check_order(self._observation(), obs, self.num_envs)
        return obs, infos

    def _has_infos(self, result: Any) -> bool:
        """Whether the second of two items is meant as infos, good or bad, and not as the last observation."""
        if not isinstance(result, tuple) or len(result) != 2:
            return False
        both, infos = self.num_envs == 2, result[1]
        if both and spaces.contains(self._observation(), infos):
            return False
        told = infos if isinstance(infos, (list, tuple)) else [infos]
        if not all(one is None or isinstance(one, Mapping) for one in told):
            return False
        good = are_infos(infos, self.num_envs)
        return good or not (both and spaces.contains(self._observation(), result[0]))

    def _seed_subs(self, seeds: Sequence[int]) -> None:
        """Envs inside that have the old ``seed()`` get it, once, before their first reset."""
        for env, seed in zip(self.subs, seeds, strict=False):
            seed_spaces(env, seed)
            if callable(getattr(env, "seed", None)):
                env.seed(seed)

    def reset_some(self, envs: IntArray) -> tuple[Any, Any]:
        """Reset some envs."""
        return self._each((i, None) for i in envs.tolist())

    def _each(self, which: Any) -> tuple[list[Any], list[dict[str, Any]]]:
        obs: list[Any] = [None] * self.num_envs
        infos: list[dict[str, Any]] = [{} for _ in obs]
        for i, seed in which:
            try:
                result = self.env.reset_at(i) if seed is None else self.env.reset_at(i, seed=seed)
            except Exception as error:
                error.add_note(f"steppe: in reset_at({i})")
                raise
            if result is None:
                message = f"reset_at({i}) returned None; return (observation, info), info being a dict"
                raise BadResult("E304", message, "reset", i)
            obs[i], infos[i] = self._pair(i, result)
        return obs, infos

    def _pair(self, i: int, result: Any) -> tuple[Any, dict[str, Any]]:
        """Observation and info; the space decides whether two items are an observation alone."""
        spec, two = self._observation(), isinstance(result, tuple) and len(result) == 2
        told = two and isinstance(result[1], dict)
        if told and not isinstance(spec, TupleSpec | OneOfSpec | SequenceSpec):
            return result[0], result[1]  # as nearly always, and nothing to find out
        if two and not spaces.contains(spec, result):
            if told:
                return result[0], result[1]
            if result[1] is None or spaces.contains(spec, result[0]):
                fix = "return a dict, {} if there is nothing to tell"
                message = f"reset_at({i}): info: got {show(result[1])}; {fix}"
                raise BadResult("E303", message, "info", i)
        if not any(leaf == "reset" for _, leaf, _ in self.odd):
            self.odd.append(("E401", "reset", "reset_at returned an observation without info"))
        return result, {}

    def step(self, spec: Spec, actions: Tree) -> Stepped:
        """Step all envs."""
        column = list(actions) if isinstance(spec, spaces.DiscreteSpec) else spaces.rows(spec, actions)
        result = self.env.vector_step(column)
        old = isinstance(result, (tuple, list)) and len(result) == 4
        stepped = self._modern(*result) if old else _five(result, "vector_step")
        check_order(self._observation(), stepped.obs, self.num_envs)
        return stepped

    def _modern(self, obs: Any, reward: Any, done: Any, infos: Any) -> Stepped:
        """Five columns out of the older four."""
        if not any(leaf == "step" for _, leaf, _ in self.odd):
            self.odd.append(("E401", "step", "vector_step returned 4 items"))
        told = are_infos(infos, self.num_envs)
        cut = [told and bool(infos[i].get("TimeLimit.truncated")) for i in range(self.num_envs)]
        ended = np.asarray(over_envs("dones", done, self.num_envs))
        if ended.shape != (len(cut),) or ended.dtype.kind not in "biu" or not np.isin(ended, (0, 1)).all():
            return Stepped(obs, reward, done, np.zeros(self.num_envs, np.bool_), infos)  # to be judged
        ended = ended.astype(np.bool_)
        return Stepped(obs, reward, ended & ~np.array(cut), ended & cut, infos)


@final
class GymnasiumBatch(Batch):
    """A ``gymnasium.vector.VectorEnv`` in any of its autoreset modes."""

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        inner: Any = env.unwrapped
        plain = isinstance(inner, (SyncVectorEnv, AsyncVectorEnv))
        self.env, self.num_envs, self.listed = env, int(env.num_envs), False
        observation = getattr(env, "single_observation_space", None)
        self.space_pair = observation, getattr(env, "single_action_space", None)
        self.subs = list(inner.envs) if isinstance(inner, SyncVectorEnv) else []
        self.names = [type(sub.unwrapped).__name__ for sub in self.subs] or type(inner).__name__
        self.odd: list[tuple[str, str, str]] = []
        mode = (env.metadata or {}).get("autoreset_mode")
        if mode is None:
            logger.warning("metadata of %s has no autoreset_mode: NEXT_STEP is assumed", type(inner).__name__)
            mode = AutoresetMode.NEXT_STEP
        self.mode = AutoresetMode(mode)
        if self.subs and self.mode is AutoresetMode.SAME_STEP:
            # It hands out last observations uncopied: a reset would overwrite those in an env's own buffer.
            inner.envs = [TransformObservation(sub, own, sub.observation_space) for sub in self.subs]
        self.can_reset = plain or self.mode is AutoresetMode.DISABLED
        self._seeds_apart = plain
        self._pooled = any(base.__module__.partition(".")[0] == "envpool" for base in type(inner).__mro__)
        if self._pooled and inner.config["batch_size"] != self.num_envs:
            some = f"batch_size={inner.config['batch_size']} of {self.num_envs} envs"
            raise ConfigError(
                f"{some}: EnvPool would step some of its envs while others are waited for; leave batch_size "
                "out, so that all step together"
            )

    def reset(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Seed and reset all envs."""
        seed_spaces(self.env, seeds[0])
        for sub, word in zip(self.subs, seeds, strict=False):
            seed_spaces(sub, word)
        if self._pooled:  # it only warns of a seed
            alone = "EnvPool is seeded by make_gymnasium(seed=...) alone"
            self.odd.append(("E401", "seed", f"{alone}: the run's seed does not reach its envs"))
            return _two(self.env.reset())
        # Only Gymnasium's own two take a seed for each env; others draw all from one.
        seed: Any = list(seeds) if self._seeds_apart else seeds[0]
        return _two(self.env.reset(seed=seed))

    def reset_some(self, envs: IntArray) -> tuple[Any, Any]:
        """Reset some envs."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[envs] = True
        return _two(self.env.reset(options={"reset_mask": mask}))

    def step(self, spec: Spec, actions: Tree) -> Stepped:
        """Step all envs."""
        return _five(self.env.step(batched(spec, actions)), "step")


def _two(result: Any) -> tuple[Any, Any]:
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        return result
    message = f"reset returned {kind_of(result)}; return (observations, infos), infos being a dict"
    raise BadResult("E304", message, "reset")


def _five(result: Any, name: str) -> Stepped:
    if isinstance(result, (tuple, list)) and len(result) == 5:
        return Stepped(*result)
    message = (
        f"{name} returned {kind_of(result)}; return (observations, rewards, terminated, truncated, infos)"
    )
    raise BadResult("E301", message, "step")


def _parameters(method: Any) -> set[str]:
    parameters = inspect.signature(method).parameters.values()
    return {"**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters}


def own_state(env: Any) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """An env's ``get_state`` and ``set_state``; a wrapper around one may have a state of its own."""
    if isinstance(env, gymnasium.vector.VectorWrapper):
        return None
    get, put = (getattr(env, name, None) for name in ("get_state", "set_state"))
    return (get, put) if callable(get) and callable(put) else None
