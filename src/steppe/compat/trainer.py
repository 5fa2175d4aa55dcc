"""``PPOTrainer`` and its like: RLlib 1.x's trainers, thin objects over :class:`steppe.Algorithm`."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from steppe.algorithm import Algorithm
from steppe.checkpoint import MANIFEST
from steppe.compat import ray, states
from steppe.compat.absent import of_class, table
from steppe.compat.callbacks import adapted
from steppe.compat.defaults import changed, default_config, known_algorithms, merged
from steppe.compat.meanings import class_of, meant, unsaid, with_updates
from steppe.compat.views import Policy, WorkerSet
from steppe.config import AlgorithmConfig, say_once
from steppe.config.values import same
from steppe.errors import ConfigError
from steppe.runners.policies import specs_of, trained_ids
from steppe.types import DEFAULT_POLICY

_ACCEPTED = table("words.toml")["acting"]
_RUNNERS = {"num_env_runners": "num_workers", "evaluation_num_env_runners": "evaluation_num_workers"}
Settings = Mapping[str, Any]


class Trainer:
    """One training run, as RLlib 1.x programs drive it. Made by :func:`trainer_class` for an algorithm.

    Args:
        config: settings that differ from the class's ``default_config``, or a full copy of it.
        env: as ``config["env"]``, over which it wins.
        logger_creator: accepted; the run folder is the log.

    Attributes:
        config: all settings, under the names that the program used.
        algorithm: what trains.
        hist_data: lists of numbers by name, kept by the episodes that ended in this iteration.
        told: the newest result as callbacks left it, until :meth:`train` returns it.
    """

    algo: ClassVar[str]
    default_config: ClassVar[dict[str, Any]]
    __getattr__ = of_class("Trainer")

    def __init__(self, config: Settings | None = None, env: Any = None, logger_creator: Any = None) -> None:
        if logger_creator is not None:
            say_once("logger_creator is accepted and has no effect: results go to the run's folder")
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(
                f"{type(self).__name__}({config!r:.60}): config is a dict of settings, the env comes second: "
                f'{type(self).__name__}(config={{...}}, env="CartPole-v1")'
            )
        self.config = merged(self.default_config, config or {})
        self.hist_data: dict[str, list[float]] = {}
        self.told: dict[str, Any] | None = None
        self._stopped = False
        if env is not None:
            self.config["env"] = env
        self.algorithm: Algorithm = _config(self).build()
        # Old programs rarely call stop().
        weakref.finalize(self, _end, self.algorithm)

    @property
    def iteration(self) -> int:
        """Iterations trained so far."""
        return self.algorithm.iteration

    training_iteration = iteration

    @property
    def workers(self) -> WorkerSet:
        """What samples: one worker, in this process."""
        return WorkerSet(self)

    def get_config(self) -> dict[str, Any]:
        """All settings."""
        return self.config

    @property
    def logdir(self) -> str | None:
        """The run's folder; None where it writes none."""
        run = self.algorithm.run
        return None if run is None else str(run.path)

    def train(self) -> dict[str, Any]:
        """One iteration; a dict of its own with RLlib's keys.

        ``result["info"]["learner"][policy]["learner_stats"]`` holds what ``result["info"][policy]`` does.

        Raises:
            ConfigError: the trainer was stopped.
        """
        self._check_running("train")
        self.told = None
        result = self.algorithm.train()
        return self.formed(result) if self.told is None else self.told

    def formed(self, result: Settings) -> dict[str, Any]:
        """A result of steppe's with RLlib's keys; its ``hist_stats`` begin anew afterwards."""
        stats, episodes = result["info"], self.algorithm.recent_episodes
        info = {**stats, "learner": {policy: {**one, "learner_stats": one} for policy, one in stats.items()}}
        for what in ("sampled", "trained"):
            info[f"num_steps_{what}"] = result["timesteps_total"]
            info[f"num_agent_steps_{what}"] = result["agent_timesteps_total"]
        rewards, lengths = [one.reward for one in episodes], [one.length for one in episodes]
        lists = {**self.hist_data, "episode_reward": rewards, "episode_lengths": lengths}
        self.hist_data = {}
        time = result["time"]
        evaluated = {"evaluation": dict(result["evaluation"])} if "evaluation" in result else {}
        times = {"time_this_iter_s": time["iteration_s"], "time_total_s": time["total_s"]}
        own = {"info": info, "hist_stats": lists, "config": self.config, "done": False}
        return {**result, **evaluated, **times, **own}

    def save(self, checkpoint_dir: str | Path | None = None) -> str:
        """Write ``<checkpoint_dir>/checkpoint_<iteration>/checkpoint-<iteration>`` and return that path.

        An earlier checkpoint of that name is replaced, also one of another run; anything else is left alone.

        Args:
            checkpoint_dir: ``checkpoints`` in the run's folder if None.

        Raises:
            ConfigError: no folder is given, and the run writes none.
            CheckpointError: there is something else under that name.
        """
        if checkpoint_dir is None and self.logdir is None:
            raise ConfigError("write_run=False: this run has no folder; say where: save(checkpoint_dir)")
        root = Path(self.logdir or "") / "checkpoints" if checkpoint_dir is None else Path(checkpoint_dir)
        n = self.iteration
        return str(self.algorithm.save(root / f"checkpoint_{n}" / f"checkpoint-{n}", overwrite=True))

    def restore(self, checkpoint_path: str | Path) -> None:
        """Go on from what :meth:`save` returned, or from the folder around it.

        Raises:
            CheckpointError: it is damaged, or of another algorithm or architecture; nothing changed.
        """
        folder = Path(checkpoint_path)
        inside = [one for one in folder.glob("checkpoint-*") if one.name[11:].isdecimal() and one.is_dir()]
        self.algorithm.restore(inside[0] if len(inside) == 1 and not (folder / MANIFEST).exists() else folder)

    def compute_action(
        self,
        observation: Any,
        state: Any = None,
        prev_action: Any = None,
        prev_reward: Any = None,
        info: Any = None,
        policy_id: str = DEFAULT_POLICY,
        full_fetch: bool = False,
        explore: bool | None = None,
        **accepted: Any,
    ) -> Any:
        """The action for one observation; drawn, not the best one, unless ``explore`` says otherwise.

        Args:
            observation: as the env gives it.
            state: of a policy with a memory, a list of arrays: ``get_policy().get_initial_state()`` for the
                first observation of an episode, and then what came back.
            prev_action: for a memory that is told of it.
            prev_reward: likewise.
            info: accepted; policies here get by without.
            policy_id: who acts.
            full_fetch: return ``(action, state, {})``, as it is returned wherever ``state`` is given.
            explore: ``config["explore"]`` if None.
            accepted: ``unsquash_action``, ``clip_action``, ``timestep``, ``episode``; without effect.
        """
        acting, policy = self._acting(explore, policy_id, **accepted), self.algorithm.get_policy(policy_id)
        known = states.joined(policy, state, prev_action, prev_reward)
        action = self.algorithm.compute_single_action(observation, known, **acting)
        action, after = (action, []) if known is None else action
        after = states.listed(after) if states.is_recurrent(policy) else after
        return (action, after, {}) if known is not None or full_fetch else action

    compute_single_action = compute_action

    def compute_actions(
        self,
        observations: Mapping[Any, Any],
        state: Mapping[Any, Any] | None = None,
        prev_action: Mapping[Any, Any] | None = None,
        prev_reward: Mapping[Any, Any] | None = None,
        *_: Any,
        **options: Any,
    ) -> Any:
        """Actions by the keys of ``observations``; options, states and what came before by the same keys.

        Returns:
            The actions; ``(actions, states, {})`` where ``state`` is given or all is asked for.
        """
        everything = options.pop("full_fetch", False) or state
        acting = self._acting(**options)
        policy = self.algorithm.get_policy(acting["policy_id"])
        if not states.is_recurrent(policy):
            actions = self.algorithm.compute_actions(observations, **acting)
            return (actions, {key: [] for key in observations}, {}) if everything else actions
        before = [one or {} for one in (state, prev_action, prev_reward)]
        known = {key: states.joined(policy, *(one.get(key) for one in before)) for key in observations}
        actions, after = self.algorithm.compute_actions(observations, known, **acting)
        return actions, {key: states.listed(one) for key, one in after.items()}, {}

    def get_policy(self, policy_id: str = DEFAULT_POLICY) -> Policy:
        """One policy, to act with and to read and write the weights of."""
        self.algorithm.get_policy(policy_id)
        return Policy(self, policy_id)

    def add_policy(
        self,
        policy_id: str,
        policy_cls: Any = None,
        *,
        observation_space: Any = None,
        action_space: Any = None,
        config: Settings | None = None,
        policy_mapping_fn: Any = None,
        policies_to_train: Any = None,
    ) -> Policy:
        """Give the run a further policy.

        Args:
            policy_id: a new one.
            policy_cls: None, or the class of another policy of the trainer's: the algorithm's own.
            observation_space: the env's if None.
            action_space: likewise.
            config: settings of its own.
            policy_mapping_fn: asked from now on.
            policies_to_train: the new one learns if it is named.

        Raises:
            ConfigError: there is such a policy, or others are to learn than do.
        """
        learns, run = policies_to_train or (), self.algorithm.config
        now = trained_ids(run, specs_of(run))
        learns = list(filter(learns, [*now, policy_id])) if callable(learns) else list(learns)
        if learns and set(learns) - {policy_id} != set(now):
            raise ConfigError(f"policies_to_train={learns}: of those before {policy_id!r}, {now} learn on")
        spec = (None if policy_cls is Policy else policy_cls, observation_space, action_space, config or {})
        mapped = {"policy_mapping_fn": policy_mapping_fn, "trained": policy_id in learns}
        self.algorithm.add_policy(policy_id, spec, **mapped)
        return self.get_policy(policy_id)

    def remove_policy(self, policy_id: str = DEFAULT_POLICY, **changes: Any) -> None:
        """Let a policy leave; further arguments are those of steppe's ``Algorithm.remove_policy``."""
        self.algorithm.remove_policy(policy_id, **changes)

    def get_weights(self, policies: Sequence[str] | None = None) -> dict[str, Any]:
        """Weights by policy; of all policies if None."""
        weights = self.algorithm.get_weights()
        return weights if policies is None else {policy: weights[policy] for policy in policies}

    def set_weights(self, weights: Settings) -> None:
        """Replace the weights of some policies."""
        self.algorithm.set_weights(weights)

    def evaluate(self) -> dict[str, Any]:
        """Run ``evaluation_num_episodes`` episodes; ``{"evaluation": result}``."""
        self._check_running("evaluate")
        return {"evaluation": dict(self.algorithm.evaluate())}

    def stop(self) -> None:
        """Release the envs and finish the run folder; may be called twice."""
        self._stopped = True
        self.algorithm.close()

    cleanup = stop

    def _check_running(self, what: str) -> None:
        if self._stopped:
            fix = f"make a new {type(self).__name__} and restore(path) what save() returned"
            raise ConfigError(f"{what}() after stop(), which released the envs: {fix}")

    def _acting(self, explore: Any = None, policy_id: str = DEFAULT_POLICY, **accepted: Any) -> Settings:
        """How to act; lets pass what RLlib takes where an action is asked for and what has no effect here."""
        for name, value in accepted.items():
            if name not in _ACCEPTED:
                raise TypeError(f"there is no argument {name!r}; others are {', '.join(_ACCEPTED)}")
            if value is False:
                say_once(f"{name}=False has no effect: actions are given as the env takes them")
        return {"policy_id": policy_id, "explore": self.config["explore"] if explore is None else explore}


@lru_cache
def trainer_class(algo: str) -> type[Trainer]:
    """The trainer of an algorithm, such as ``PPOTrainer`` for ``"PPO"``.

    Raises:
        ConfigError: no such algorithm.
    """
    if algo not in known_algorithms():
        raise ConfigError(f"no trainer of {algo!r}; there are {', '.join(known_algorithms())}")
    members = {"algo": algo, "default_config": default_config(algo)}
    return type(f"{algo}Trainer", (Trainer,), {"__doc__": Trainer.__doc__, **members})


def _config(trainer: Trainer) -> AlgorithmConfig:
    """What a program's settings mean here: RLlib's own defaults, and on top what the program changed."""
    cls, theirs = class_of(trainer.algo, trainer.config), default_config(trainer.algo)
    defaults = meant(cls, theirs)
    given = changed(meant(cls, {**trainer.config, "evaluation_config": {}}), defaults)
    if given.get("callbacks") is not None:
        given["callbacks"] = adapted(given["callbacks"], trainer)
    plain = cls.resolved(defaults | {"callbacks": None, "evaluation_config": {}})
    values = plain | unsaid(trainer.algo) | cls.resolved(given)
    workers = values["num_env_runners"]
    for name, old in _RUNNERS.items():
        wanted, values[name] = values[name], 0
        if wanted and not ray.is_local_mode():
            say_once(
                f"{old}={wanted}: all envs of a Trainer run in this process; those of a config's "
                "build() may run on Ray, see num_env_runners"
            )
    base = cls.preset("rllib") if "rllib" in cls.presets else cls()
    config = with_updates(base.copy(**values), workers)
    return config.copy(evaluation_config=_evaluation(trainer, config, theirs["evaluation_config"]))


def _evaluation(trainer: Trainer, config: AlgorithmConfig, default: Settings) -> dict[str, Any]:
    """Of ``evaluation_config`` what differs from the run; it explores as training does unless told not to."""
    settings, own = meant(type(config), trainer.config), trainer.config["evaluation_config"]
    if not isinstance(own, Mapping | None):
        raise ConfigError(f"evaluation_config={own!r:.60}: give a dict of the settings that differ, or None")
    own = meant(type(config), {"explore": settings["explore"], **(own or {})})
    for key in ("callbacks", "env"):  # a copy of the whole config may be without the env, which comes second
        if own.get(key) in (None, settings[key]):
            own.pop(key, None)
    if "callbacks" in own:
        own["callbacks"] = adapted(own["callbacks"], trainer)
    own.pop("evaluation_config", None)  # of such a copy

    def differs(key: str) -> bool:
        if any(key in those and same(own[key], those[key]) for those in (settings, default)):
            return False
        values = type(config).resolved({key: own[key]}, "evaluation_config.").items()
        return any(name not in _RUNNERS and not same(value, getattr(config, name)) for name, value in values)

    return {key: value for key, value in own.items() if key == "explore" or differs(key)}


def _end(algorithm: Algorithm) -> None:
    """Close what the program did not, and say in its record how the program ended."""
    error = getattr(sys, "last_value", None)
    with contextlib.suppress(OSError):  # the folder was deleted, or the program works in another one now
        algorithm.__exit__(type(error) if error else None, error, None)


PPOTrainer = trainer_class("PPO")


def __getattr__(name: str) -> type[Trainer]:
    """Trainers of other algorithms, such as ``ImpalaTrainer``, which load theirs when they are asked for."""
    algo = name.removesuffix("Trainer").upper()
    if name == algo or algo not in known_algorithms():
        raise AttributeError(f"no {name!r} here: there are trainers of {', '.join(known_algorithms())}")
    return trainer_class(algo)
