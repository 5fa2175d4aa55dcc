"""``PPOTrainer`` and its like: RLlib 1.x's trainers, thin objects over :class:`steppe.Algorithm`."""

from __future__ import annotations

import contextlib
import re
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, final

from steppe.algorithm import Algorithm
from steppe.algorithms import config_class
from steppe.checkpoint import MANIFEST
from steppe.compat import ray
from steppe.compat.callbacks import adapted
from steppe.compat.defaults import changed, default_config, merged
from steppe.config import AlgorithmConfig, say_once
from steppe.errors import ConfigError
from steppe.types import DEFAULT_POLICY

_PATH = re.compile(r"checkpoint-\d+")
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
    """

    algo: ClassVar[str]
    default_config: ClassVar[dict[str, Any]]

    def __init__(self, config: Settings | None = None, env: Any = None, logger_creator: Any = None) -> None:
        if logger_creator is not None:
            say_once("logger_creator is accepted and has no effect: results go to the run's folder")
        self.config = merged(self.default_config, config or {})
        if env is not None:
            self.config["env"] = env
        self.algorithm: Algorithm
        self.algorithm = _config(self).build()
        # Old programs rarely call stop().
        weakref.finalize(self, _end, self.algorithm)

    @property
    def iteration(self) -> int:
        """Iterations trained so far."""
        return self.algorithm.iteration

    @property
    def logdir(self) -> str | None:
        """The run's folder; None where it writes none."""
        run = self.algorithm.run
        return None if run is None else str(run.path)

    def train(self) -> dict[str, Any]:
        """One iteration; a dict of its own with RLlib's keys.

        ``result["info"]["learner"][policy]["learner_stats"]`` holds what ``result["info"][policy]`` does.
        """
        result = dict(self.algorithm.train())
        stats = result["info"]
        learner = {policy: {**values, "learner_stats": values} for policy, values in stats.items()}
        steps = result["timesteps_total"]
        counted = {"num_steps_sampled": steps, "num_steps_trained": steps}
        return result | {
            "info": {**stats, **counted, "learner": learner},
            "time_this_iter_s": result["time"]["iteration_s"],
            "time_total_s": result["time"]["total_s"],
            "config": self.config,
            "done": False,
        }

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
        self.algorithm.restore(checkpoint_of(checkpoint_path))

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
    ) -> Any:
        """The action for one observation; drawn, not the best one, unless ``explore`` says otherwise.

        Args:
            observation: as the env gives it.
            state: of a recurrent policy.
            prev_action: accepted; policies here get by without.
            prev_reward: likewise.
            info: likewise.
            policy_id: who acts.
            full_fetch: return ``(action, state, {})``, as it is returned wherever ``state`` is given.
            explore: ``config["explore"]`` if None.
        """
        before = state or None
        action = self.algorithm.compute_single_action(
            observation, before, policy_id=policy_id, explore=self._explores(explore)
        )
        action, after = action if before is not None else (action, [])
        return (action, after, {}) if before is not None or full_fetch else action

    compute_single_action = compute_action

    def compute_actions(
        self, observations: Settings, *_: Any, policy_id: str = DEFAULT_POLICY, explore: bool | None = None
    ) -> dict[str, Any]:
        """Actions by the keys of ``observations``; arguments as in :meth:`compute_action`."""
        return self.algorithm.compute_actions(
            observations, policy_id=policy_id, explore=self._explores(explore)
        )

    def get_policy(self, policy_id: str = DEFAULT_POLICY) -> TrainerPolicy:
        """One policy, to act with and to read and write the weights of."""
        self.algorithm.get_policy(policy_id)
        return TrainerPolicy(self, policy_id)

    def get_weights(self, policies: Sequence[str] | None = None) -> dict[str, Any]:
        """Weights by policy; of all policies if None."""
        weights = self.algorithm.get_weights()
        return weights if policies is None else {policy: weights[policy] for policy in policies}

    def set_weights(self, weights: Settings) -> None:
        """Replace the weights of some policies."""
        self.algorithm.set_weights(weights)

    def evaluate(self) -> dict[str, Any]:
        """Run ``evaluation_num_episodes`` episodes; ``{"evaluation": result}``."""
        return {"evaluation": dict(self.algorithm.evaluate())}

    def stop(self) -> None:
        """Release the envs and finish the run folder; may be called twice."""
        self.algorithm.close()

    cleanup = stop

    def _explores(self, explore: bool | None) -> bool:
        return bool(self.config["explore"] if explore is None else explore)


@final
class TrainerPolicy:
    """One policy of a trainer, as ``trainer.get_policy()`` gives it."""

    def __init__(self, trainer: Trainer, policy_id: str) -> None:
        self._trainer, self.policy_id, self.config = trainer, policy_id, trainer.config

    def compute_single_action(
        self, obs: Any, state: Any = None, **others: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """``(action, state, {})`` for one observation; other arguments as a trainer's."""
        others |= {"policy_id": self.policy_id, "full_fetch": True}
        answer: tuple[Any, Any, dict[str, Any]] = self._trainer.compute_action(obs, state, **others)
        return answer

    def get_weights(self) -> Any:
        """The policy's weights."""
        return self._trainer.get_weights([self.policy_id])[self.policy_id]

    def set_weights(self, weights: Any) -> None:
        """Replace the policy's weights."""
        self._trainer.set_weights({self.policy_id: weights})


@lru_cache
def trainer_class(algo: str) -> type[Trainer]:
    """The trainer of an algorithm, such as ``PPOTrainer`` for ``"PPO"``.

    Raises:
        ConfigError: no such algorithm.
    """
    members = {"algo": config_class(algo).algo_name, "default_config": default_config(algo)}
    return type(f"{algo}Trainer", (Trainer,), {"__doc__": Trainer.__doc__, **members})


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint itself, where ``path`` may be the folder around it."""
    folder = Path(path)
    if folder.is_dir() and not (folder / MANIFEST).exists():
        inside = [entry for entry in folder.iterdir() if entry.is_dir() and _PATH.fullmatch(entry.name)]
        if len(inside) == 1:
            return inside[0]
    return folder


def _config(trainer: Trainer) -> AlgorithmConfig:
    """What a program's settings mean here: RLlib's own defaults, and on top what the program changed."""
    cls, settings, defaults = config_class(trainer.algo), trainer.config, default_config(trainer.algo)
    given = changed(settings, defaults)
    if given.get("callbacks") is not None:
        given["callbacks"] = adapted(given["callbacks"], trainer)
    # Evaluation explores as training does, unless it is told otherwise.
    given["evaluation_config"] = {"explore": settings["explore"], **settings["evaluation_config"]}
    values = cls.resolved(defaults | {"callbacks": None}) | cls.resolved(given)
    for name, old in _RUNNERS.items():
        wanted, values[name] = values[name], 0
        if wanted and not ray.is_local_mode():
            say_once(f"{old}={wanted}: runners on Ray are not available yet; all envs run in this process")
    return cls.preset("rllib").copy(**values)


def _end(algorithm: Algorithm) -> None:
    """Close what the program did not, and say in its record how the program ended."""
    error = getattr(sys, "last_value", None)
    with contextlib.suppress(OSError):  # the folder was deleted, or the program works in another one now
        algorithm.__exit__(type(error) if error else None, error, None)
