"""What callbacks and programs reach of a run, under the names that RLlib 1.x gave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from steppe.compat import states
from steppe.compat.absent import of_class, table, told
from steppe.envs import base_env
from steppe.envs.registry import user_env
from steppe.sampling import episodes
from steppe.types import DEFAULT_POLICY, AsyncEnv

if TYPE_CHECKING:
    from steppe.compat.trainer import Trainer
    from steppe.runners.local import LocalRunner

_SAME = table("words.toml")["episode"]


@final
class SampleBatch(dict[str, Any]):
    """Columns of rows by name; a name that is missing is an error that says where to find it."""

    OBS = CUR_OBS = "obs"
    NEXT_OBS, ACTIONS, REWARDS, DONES, INFOS = "new_obs", "actions", "rewards", "dones", "infos"
    ACTION_LOGP, VF_PREDS, EPS_ID, AGENT_INDEX, T = "action_logp", "vf_preds", "eps_id", "agent_index", "t"

    def __missing__(self, name: str) -> Any:
        raise KeyError(told("SampleBatch", name, self))

    @property
    def count(self) -> int:
        """The number of actions in it; before learning, some rows hold none."""
        if "filled" not in self:
            return len(self["rewards"])
        goes_on = self["filled"] & ~self["terminated"] & ~self["truncated"]
        return int((goes_on[:-1] & self["filled"][1:]).sum())


@final
class Policy:
    """One policy of a trainer, as ``trainer.get_policy()`` gives it."""

    __getattr__ = of_class("Policy")

    def __init__(self, trainer: Trainer, policy_id: str) -> None:
        self._trainer, self.policy_id, self.config = trainer, policy_id, trainer.config

    @property
    def observation_space(self) -> Any:
        """The env's; None where a vector env shows no envs of its own."""
        return getattr(self._trainer.workers.local_worker().env, "observation_space", None)

    @property
    def action_space(self) -> Any:
        """Likewise."""
        return getattr(self._trainer.workers.local_worker().env, "action_space", None)

    def is_recurrent(self) -> bool:
        """Whether it has a memory."""
        return states.is_recurrent(self._trainer.algorithm.get_policy(self.policy_id))

    def get_initial_state(self) -> list[Any]:
        """What it remembers as an episode begins, a list of arrays; empty without a memory."""
        return states.initial_state(self._trainer.algorithm.get_policy(self.policy_id))

    def compute_single_action(
        self, obs: Any, state: Any = None, prev_action: Any = None, prev_reward: Any = None, **options: Any
    ) -> Any:
        """``(action, state, {})`` for one observation; options as a trainer's."""
        options |= {"policy_id": self.policy_id, "full_fetch": True}
        return self._trainer.compute_action(obs, state, prev_action, prev_reward, **options)

    def compute_actions(
        self,
        obs_batch: Sequence[Any],
        state_batches: Sequence[Any] | None = None,
        prev_action_batch: Sequence[Any] | None = None,
        prev_reward_batch: Sequence[Any] | None = None,
        *_: Any,
        **options: Any,
    ) -> tuple[Any, list[Any], Any]:
        """``(actions, states, {})`` for observations ``(n, ...)``; the actions in one array if they fit.

        States are a list of arrays ``(n, ...)``, empty without a memory.
        """
        rows, given = dict(enumerate(obs_batch)), state_batches or ()
        known = {i: [array[i] for array in given] for i in rows} if given else None
        before = [
            None if one is None else dict(enumerate(one)) for one in (prev_action_batch, prev_reward_batch)
        ]
        options |= {"policy_id": self.policy_id, "full_fetch": True}
        found, after, _info = self._trainer.compute_actions(rows, known, *before, **options)
        actions = list(found.values())
        trees = any(isinstance(one, tuple | dict) for one in actions)
        columns = [np.stack(arrays) for arrays in zip(*after.values(), strict=True)]
        return actions if trees else np.array(actions), columns, {}

    def get_weights(self) -> Any:
        """The policy's weights."""
        return self._trainer.get_weights([self.policy_id])[self.policy_id]

    def set_weights(self, weights: Any) -> None:
        """Replace the policy's weights."""
        self._trainer.set_weights({self.policy_id: weights})


@final
class RolloutWorker:
    """What samples in this process.

    Attributes:
        worker_index: 0.
        in_evaluation: whether nobody learns from what it samples.
        policy_config: the trainer's settings.
    """

    __getattr__ = of_class("RolloutWorker")

    def __init__(self, runner: LocalRunner, trainer: Trainer) -> None:
        self._runner, self._trainer, self.policy_config = runner, trainer, trainer.config
        self.worker_index, self.in_evaluation = runner.worker_index, runner.in_evaluation

    @property
    def env(self) -> Any:
        """The first env; None where a vector env shows none."""
        return next(iter(env_objects(self._runner.env)), None)

    @property
    def policy_map(self) -> dict[str, Policy]:
        """The policies by id."""
        return {id: Policy(self._trainer, id) for id in self._runner.spaces}

    def get_policy(self, policy_id: str = DEFAULT_POLICY) -> Policy:
        """One of them."""
        return self._trainer.get_policy(policy_id)

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """Call it with each env, as its constructor gave it."""
        return [function(env) for env in env_objects(self._runner.env)]


@final
class WorkerSet:
    """``trainer.workers``: the one that there is."""

    __getattr__ = of_class("WorkerSet")

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def local_worker(self) -> RolloutWorker:
        """The worker in this process."""
        return shown(self._trainer, "worker", self._trainer.algorithm.runner)  # type: ignore[no-any-return]

    def remote_workers(self) -> list[Any]:
        """None of them."""
        return []

    def foreach_worker(self, function: Callable[[RolloutWorker], Any]) -> list[Any]:
        """Call it with each worker."""
        return [function(self.local_worker())]

    def foreach_env(self, function: Callable[[Any], Any]) -> list[list[Any]]:
        """Call it with each env, as its constructor gave it; a list for each worker."""
        return [self.local_worker().foreach_env(function)]


@final
@base_env.BaseEnv.register
class BaseEnv:
    """The envs of one worker, whatever their kind; to programs an instance of the class that they import."""

    __getattr__ = of_class("BaseEnv")

    def __init__(self, env: AsyncEnv) -> None:
        self._env, self.num_envs = env, env.num_envs

    def get_sub_environments(self) -> list[Any]:
        """The envs, as their constructor gave them."""
        return env_objects(self._env)

    get_unwrapped = get_sub_environments


def _kept(name: str) -> property:
    """One of an episode's dicts, which gets other contents but stays the same: the sampler holds it, too."""

    def replace(self: Episode, values: Mapping[str, Any]) -> None:
        kept, fresh = getattr(self._episode, name), dict(values)
        kept.clear()
        kept.update(fresh)

    return property(lambda self: getattr(self._episode, name), replace)


@final
class Episode:
    """A running episode, or one that just ended; what it shows is steppe's own Episode.

    Attributes:
        hist_data: lists of numbers by name. Those of the episodes that end in an iteration are together in
            its ``result["hist_stats"]``.
        user_data: the program's own.
        custom_metrics: numbers that go into the result when the episode ends.
    """

    user_data, custom_metrics = _kept("user_data"), _kept("custom_metrics")

    def __init__(self, episode: episodes.Episode) -> None:
        self._episode = episode
        self.hist_data: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in _SAME:
            return getattr(self._episode, _SAME[name])
        raise AttributeError(told("Episode", name, [*dir(type(self)), *vars(self), *_SAME]))

    @property
    def agent_rewards(self) -> dict[tuple[Any, str], float]:
        """What each agent has earned so far, by ``(agent, policy)``."""
        rewards = self._episode.agent_rewards.items()
        return {(agent, self._episode.policy_for(agent)): reward for agent, reward in rewards}


def env_objects(env: AsyncEnv) -> list[Any]:
    """The envs as their constructors gave them, without the wrappers that ``gymnasium.make`` puts on."""
    return [_innermost(one) for one in env.get_sub_environments()]


def _innermost(env: Any) -> Any:
    # gym's wrappers showed what is inside them; Gymnasium's, which gymnasium.make puts on, do not.
    own = user_env(env)
    return _innermost(own.env) if isinstance(own, TimeLimit | OrderEnforcing | PassiveEnvChecker) else own


def shown(trainer: Trainer, argument: str, value: Any) -> Any:
    """An argument of a hook as RLlib's programs know it.

    There is one view of an object for as long as it lives: programs keep attributes of their own on it.
    """
    if argument in _KEPT:
        return vars(value).setdefault("_rllib_view", _KEPT[argument](trainer, value))
    return _SHOWN[argument](trainer, value) if argument in _SHOWN else value


def _policy(trainer: Trainer, policy: Any) -> Policy:
    ids = trainer.algorithm.runner.spaces
    return Policy(trainer, next(id for id in ids if trainer.algorithm.get_policy(id) is policy))


_KEPT: dict[str, Callable[[Trainer, Any], Any]] = {
    "worker": lambda trainer, runner: RolloutWorker(runner, trainer),
    "base_env": lambda trainer, env: BaseEnv(env),
    "episode": lambda trainer, episode: Episode(episode),
}
_SHOWN: dict[str, Callable[[Trainer, Any], Any]] = {
    "algorithm": lambda trainer, _: trainer,
    "policies": lambda trainer, policies: {id: Policy(trainer, id) for id in policies},
    "policy": _policy,
    "original_batches": lambda trainer, batches: {
        agent: (_policy(trainer, policy), SampleBatch(batch)) for agent, (policy, batch) in batches.items()
    },
}
