"""The training loop: sample, learn, publish, report."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

from steppe import checkpoint
from steppe.config import AlgorithmConfig
from steppe.errors import CheckpointError, ConfigError, LearningError
from steppe.learning.independent import IndependentLearner
from steppe.learning.startup import give_back_memory, prepare_jax
from steppe.loading import POLICIES
from steppe.resuming import adopt_learner, check_spaces, other_envs, read_run, saved_config, settings_of
from steppe.runners.choosing import make_evaluator, make_runner
from steppe.runners.evaluation import Evaluator, checked_metrics
from steppe.runners.policies import made_policies, specs_of, trained_ids
from steppe.sampling import callbacks
from steppe.sampling.metrics import Account, EpisodeRecord, Result, Sample
from steppe.seeding import fresh_seed, stream
from steppe.types import DEFAULT_POLICY, Policy, State, Tree

if TYPE_CHECKING:
    from steppe.learning.overlap import Ahead
    from steppe.sampling.postprocessing import Postprocessing
    from steppe.tracking.run import Run, Status

logger = logging.getLogger("steppe")


@final
class Algorithm:
    """A run: envs, policies, and the learner that improves them. Made by ``config.build()``.

    A context manager; :meth:`close` (or :meth:`stop`) releases the envs.

    Args:
        config: is copied; a missing seed is drawn and recorded.
    """

    def __init__(self, config: AlgorithmConfig) -> None:
        prepare_jax()
        self.config = config if config.seed is not None else config.copy(seed=fresh_seed())
        self._run_id = os.urandom(8).hex()
        self._callbacks = callbacks.make_callbacks(self.config.callbacks_class)
        self._hooks = {name: callbacks.hook_of(self._callbacks, name) for name in callbacks.HOOKS}
        self.runner = make_runner(self.config, self._callbacks)
        try:
            learners, scripted = made_policies(self.config, self.runner.spaces)
            self._learner = IndependentLearner(learners, trained_ids(self.config, specs_of(self.config)))
            self._ahead: Ahead | None = None
            if self.config.sample_async:
                from steppe.learning.overlap import Ahead  # most runs sample and learn in turns

                self._ahead = Ahead(self._learner)
            known = {**self._learner.policies, **scripted}
            self._policies: dict[str, Policy] = {id: known[id] for id in self.runner.spaces}
            self._learner.on_batch = self._hooks["on_learn_on_batch"]
            self._postprocess = self._postprocessing()
            self.runner.start(
                self._policies,
                trained=self._learner.trained if self._postprocess is None else list(self._policies),
                explore=self.config.explore,
                fragment_length=self._fragment_length(),
                complete=self.config.batch_mode == "complete_episodes",
            )
            self.runner.set_weights(self._learner.publish())
        except BaseException:
            self.runner.close()
            raise
        self._evaluator: Evaluator | None = None
        self._account = Account(self.config.metrics_num_episodes_for_smoothing)
        self._iteration, self._iterating = 0, False
        self._noise = stream(int(self.config.seed or 0), "actions")
        self._evaluated = self._best_evaluation = float("nan")
        self._run: Run | None = None
        self._call("on_algorithm_init")

    def _fragment_length(self) -> int:
        """Env steps per env; "auto" is worked out with the envs there are: a vector env brings its own."""
        asked, envs = self.config.rollout_fragment_length, self.runner.env.num_envs
        return asked if isinstance(asked, int) else math.ceil(self.config.train_batch_size / envs)

    def _postprocessing(self) -> Postprocessing | None:
        if not any(learner.postprocess for learner in self._learner.learners.values()):
            return None
        from steppe.sampling.postprocessing import Postprocessing  # most runs have none

        return Postprocessing(self._learner.learners, self._policies)

    def _call(self, name: str, **arguments: Any) -> None:
        """Call a hook of the whole run."""
        if (hook := self._hooks[name]) is not None:
            hook(algorithm=self, **arguments)

    @property
    def run(self) -> Run | None:
        """The run folder, made when first asked for or trained; None with ``write_run=False``."""
        if self._run is None and self.config.write_run:
            from steppe.tracking.run import new_run

            self._run = new_run(self.config, self._run_id)
        return self._run

    @run.setter
    def run(self, run: Run | None) -> None:
        self._run = run

    @property
    def iteration(self) -> int:
        """Iterations trained so far."""
        return self._iteration

    @property
    def recent_episodes(self) -> Sequence[EpisodeRecord]:
        """The episodes that the means of the newest result are over."""
        return self._account.window.summarized

    def train(self) -> Result:
        """One iteration: sample until every policy has learned, and report.

        Raises:
            EnvError: an env broke its contract; an exception of the env's own code comes as it is.
            LearningError: ten updates of a policy in a row were undone, for their numbers were not finite.
            ConfigError: the run folder cannot be made.
        """
        config, began = self.config, perf_counter()
        assert not config.write_run or self.run is not None  # made now: nothing is trained that is not kept
        samples: list[Sample] = []
        stats: dict[str, dict[str, float]] = {}
        learning, steps, new, learner = 0.0, 0, -1, self._ahead or self._learner
        self._iterating = True
        try:
            while new and (  # else nobody came
                set(stats) != set(self._learner.trained)
                or steps < config.min_sample_timesteps_per_iteration
                or perf_counter() - began < config.min_time_s_per_iteration
            ):
                fragments = self.runner.sample()
                samples += fragments
                new = sum(sample.env_steps for sample in fragments)
                steps += new
                self._account.env_steps += new
                sampled = perf_counter()
                for sample in fragments:
                    if self._postprocess is not None:
                        self._postprocess(sample.rollouts)
                    learner.add(sample.rollouts)
                    sample.rollouts = []  # the learner's from here on
                learned = learner.update(self._account.env_steps, self._iteration + 1)
                if learned is not None:
                    stats |= {id: own or stats.get(id, own) for id, own in learned.items()}
                    self.runner.set_weights(learner.publish())
                learning += perf_counter() - sampled
        finally:
            self._iterating = False
            if self._ahead is not None:
                late = self._ahead.settle() or {}
                stats |= {id: own for id, own in late.items() if own}
                self.runner.set_weights(self._ahead.publish())
        if not self._iteration:
            give_back_memory()
        self._iteration += 1
        told = self._account.report(samples, self.runner.standing(), perf_counter() - began, learning)
        result = Result({**told, "training_iteration": self._iteration, "info": dict(stats)})
        self._evaluated = float("nan")
        if config.evaluation_interval and self._iteration % config.evaluation_interval == 0:
            evaluation = self.evaluate()
            self._evaluated = float(evaluation["episode_reward_mean"])
            result = Result({**result, "evaluation": evaluation})
        if self._callbacks:
            values = dict(result)
            self._call("on_train_result", result=values)
            result = Result({**result, **values})
        self._record(result, samples)
        if self._learner.stuck:
            raise LearningError(self._learner.stuck)
        return result

    def _record(self, result: Result, samples: list[Sample]) -> None:
        """Write the run folder, if there is one, and a checkpoint when one is due."""
        run = self._run or (self.run if self.config.write_run else None)
        if run is None:
            return
        episodes = [episode for sample in samples for episode in sample.episodes]
        run.log_result(result)
        run.log_episodes([{**episode.summary(), "steps": self._account.env_steps} for episode in episodes])
        record = not self._evaluated <= self._best_evaluation and not math.isnan(self._evaluated)
        if record:
            self._best_evaluation = self._evaluated
        freq = self.config.checkpoint_freq
        if freq and (record or self._iteration % freq == 0):
            self.save_to_run()

    def save_to_run(self) -> Path:
        """Write a checkpoint into the run folder, where the newest and the best are kept.

        With evaluations, the best is the one with the highest mean reward in its own; one that was not
        evaluated is never the best.

        Raises:
            ConfigError: this run writes no folder.
        """
        if self.run is None:
            raise ConfigError("write_run=False: this run has no folder; save(path) writes anywhere")
        path = self.save(self.run.checkpoint_dir(self._account.env_steps))
        evaluates = self.config.evaluation_interval
        self.run.register_checkpoint(
            path, self._account.env_steps, self._evaluated if evaluates else self._account.window.mean_reward
        )
        return path

    def evaluate(self, num_episodes: int | None = None, *, explore: bool | None = None) -> Result:
        """Run whole episodes with the newest weights, see :class:`~steppe.runners.evaluation.Evaluator`.

        Args:
            num_episodes: ``evaluation_duration`` when not given.
            explore: draw actions instead of taking the most likely ones; as ``evaluation_config`` says when
                not given.

        Returns:
            The episode keys of a result, over exactly these episodes.
        """
        if num_episodes is not None:
            num_episodes = self.config.checked("evaluation_duration", num_episodes, "num_episodes")
        self._call("on_evaluate_start")
        self._evaluator = self._evaluator or self._make_evaluator()
        within, self._iterating = self._iterating, True
        try:
            sample = self._evaluator.evaluate(self._learner.publish(), num_episodes, explore)
        except BaseException:
            with contextlib.suppress(Exception):
                self._drop_evaluator()  # its envs are in the middle of something
            raise
        finally:
            self._iterating = within
        metrics = self._evaluator.metrics(sample)
        changed = dict(metrics)
        self._call("on_evaluate_end", evaluation_metrics=changed)
        return checked_metrics({**metrics, **changed})

    def _make_evaluator(self) -> Any:
        return make_evaluator(self.config, self._policies, self._callbacks, self.runner)

    def _drop_evaluator(self) -> None:
        """The next evaluation, if there is one, begins with new envs."""
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None:
            evaluator.close()

    @contextlib.contextmanager
    def _or_new_evaluator(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            self._drop_evaluator()  # the next evaluation asks, and says it, at its start

    def compute_actions(
        self, obs: Any, state: Any = None, *, policy_id: str = DEFAULT_POLICY, explore: bool = False
    ) -> Any:
        """An env action for each of several observations, by the keys of ``obs``, in one batch.

        Returns:
            Actions by key; ``(actions, states)`` when ``state``, which has states by key, is given.
        """
        from steppe.policies.acting import actions_for  # training acts by other means

        policy, rng = self.get_policy(policy_id), self._noise if explore else None
        return actions_for(policy_id, policy, self.runner.weights_of(policy_id), obs, rng, state)

    def compute_single_action(
        self, obs: Any, state: Tree = None, *, policy_id: str = DEFAULT_POLICY, explore: bool = False
    ) -> Any:
        """The action for one observation, as the env takes it.

        Args:
            obs: as the env gives it.
            state: of a policy with a memory: what came back for the observation before, and ``{}`` for the
                first one of a trajectory. With ``prev_reward``, set its ``"reward"`` to that of ``obs``.
            policy_id: who acts.
            explore: draw the action instead of taking the likeliest.

        Returns:
            The action; ``(action, state)`` when ``state`` is given.
        """
        states = None if state is None else {"": state}
        found = self.compute_actions({"": obs}, states, policy_id=policy_id, explore=explore)
        return found[""] if state is None else (found[0][""], found[1][""])

    def get_policy(self, policy_id: str = DEFAULT_POLICY) -> Policy:
        """What runners act with."""
        if policy_id not in self._policies:
            raise ConfigError(f"no policy {policy_id!r}; there are {', '.join(self._policies)}")
        return self._policies[policy_id]

    def add_policy(
        self,
        policy_id: str,
        spec: Any = None,
        *,
        like: str | None = None,
        trained: bool = False,
        policy_mapping_fn: Callable[..., str] | None = None,
    ) -> Policy:
        """Give the run a further policy, between iterations; checkpoints hold it from then on.

        Args:
            policy_id: a new one.
            spec: as in the setting ``policies``: None, a :class:`PolicySpec`, or a tuple.
            like: id of the policy that it begins as a copy of, observation statistics included.
            trained: whether it learns.
            policy_mapping_fn: asked from now on, where another one is to be.

        Raises:
            ConfigError: there is such a policy already, or it cannot be what it is to be.
        """
        from steppe.runners.joining import joined

        self._check_between("add a policy")
        learns = [*self._learner.trained, policy_id] if trained else self._learner.trained
        made = joined(self.config, policy_id, spec, self.runner, like, learns, policy_mapping_fn)
        config, learner, policy = made
        if learner is not None:
            self._learner.add_policy(policy_id, learner, trained=trained, like=like)
        self._policies[policy_id], self.config = policy, config
        self._postprocess = self._postprocessing()
        recorded = trained or self._postprocess is not None
        self.runner.add_policy(policy_id, policy, config, trained=recorded)
        if self._evaluator is not None:
            with self._or_new_evaluator():
                self._evaluator.runner.add_policy(policy_id, policy, config, trained=False)
        self.runner.set_weights(self._learner.publish())
        return policy

    def remove_policy(
        self, policy_id: str, *, policy_mapping_fn: Any = None, policies_to_train: Any = None
    ) -> None:
        """Let a policy leave the run, between iterations; checkpoints hold the others only.

        Running episodes go on: the mapping is asked anew for those agents of theirs that the policy acted
        for. What such an agent earned counts, all of it, for the policy that it ends the episode with.

        Args:
            policy_id: whose parameters and unlearned rows are dropped.
            policy_mapping_fn: asked from now on, where another one is to be.
            policies_to_train: those of the others that go on to learn; all that do by now if None.

        Raises:
            ConfigError: there is no such policy, none would be left or learn, or the mapping still names it
                for an agent of a running episode; nothing changed.
        """
        from steppe.runners.joining import left

        self._check_between("remove a policy")
        config = left(self.config, policy_id, self._learner.trained, policy_mapping_fn, policies_to_train)
        recorded = config.policies_to_train if self._postprocess is None else list(config.policies)
        self.runner.remove_policy(policy_id, config, trained=recorded)
        if self._evaluator is not None:
            with self._or_new_evaluator():
                self._evaluator.runner.remove_policy(policy_id, config, trained=())
        self._learner.remove_policy(policy_id, config.policies_to_train)
        del self._policies[policy_id]
        self.config, self._postprocess = config, self._postprocessing()

    def _check_between(self, what: str, error: type[Exception] = ConfigError) -> None:
        if self._iterating:
            raise error(
                f"envs are stepping: {what} between iterations, in on_train_result or on_evaluate_end"
            )

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function`` makes of each env that samples, as its constructor gave it.

        Where runners are processes, ``function`` goes there, and what it returns comes from there.
        """
        return list(self.runner.foreach_env(function))

    def foreach_runner(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function`` makes of each runner that samples, in their order; it goes to where they are."""
        return list(self.runner.foreach_runner(function))

    def get_weights(self) -> dict[str, Any]:
        """All parameters, one flat float32 vector a policy; observation statistics are not among them."""
        return self._learner.get_weights()

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace the parameters of some policies; the next step is taken with them."""
        self._learner.set_weights(weights)
        self.runner.set_weights(self._learner.publish())

    def summary(self) -> str:
        """Env, spaces, networks and parameter counts in words."""
        return f"{self.config!r}\n{self._learner.summary()}"

    def get_state(self) -> dict[str, State]:
        """The full state of every owner.

        Raises:
            CheckpointError: an iteration or evaluation is under way.
        """
        self._check_between("save", CheckpointError)
        own = {"iteration": self._iteration, "best_evaluation": self._best_evaluation}
        owners: dict[str, State] = {
            "algorithm": {**self._account.get_state(), **own},
            "actions": {"rng": self._noise.bit_generator.state},
            "callbacks": callbacks.get_callbacks_state(self._callbacks),
            "learner": self._learner.get_state(),
            "runner": self.runner.get_state(),
        }
        if self._evaluator is not None:
            owners["evaluator"] = self._evaluator.get_state()
        return owners

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a checkpoint, atomically, as the folder ``path``; returns it.

        Args:
            path: new, empty, or a checkpoint of this run.
            overwrite: replace a checkpoint of another run, too.

        Raises:
            CheckpointError: the folder holds something else; it is left alone.
        """
        meta = {
            **settings_of(self.config),
            "run_id": self._run_id,
            "timesteps_total": self._account.env_steps,
            "training_iteration": self._iteration,
            "total_s": self._account.total_s,
        }
        policies = {id: self._policies[id].export(w) for id, w in self._learner.publish().items()}
        written = checkpoint.save(path, {**self.get_state(), POLICIES: policies}, meta, overwrite=overwrite)
        self._call("on_checkpoint", path=written)
        return written

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on exactly from a checkpoint; what could not be restored exactly is logged.

        Args:
            path: its folder, or a run's, see :func:`~steppe.loading.checkpoint_at`.

        Raises:
            CheckpointError: it is damaged, or belongs to other spaces or networks; nothing changed.
        """
        _, owners, meta = read_run(path)
        self._adopt(owners, meta)

    def _adopt(self, owners: Mapping[str, State], meta: Mapping[str, Any], *, resume: bool = True) -> None:
        if meta.get("algo") != self.config.algo_name:
            raise CheckpointError(f"a checkpoint of {meta.get('algo')}, not of {self.config.algo_name}")
        check_spaces(owners, self._policies)
        before = self._learner.get_state()
        adopt_learner(self._learner, owners["learner"], meta, self.config)
        # First: they may shape envs that are replayed.
        callbacks.set_callbacks_state(self._callbacks, owners["callbacks"])
        try:
            notes = self._adopt_envs(owners, meta) if resume else []
        except BaseException:
            self._learner.set_state(before)
            raise
        self.runner.set_weights(self._learner.publish())
        own = owners["algorithm"]
        self._account.set_state(own, float(meta["total_s"]))
        self._iteration = int(own["iteration"])
        self._best_evaluation = float(own["best_evaluation"])
        self._noise.bit_generator.state = owners["actions"]["rng"]
        self._run_id = meta["run_id"]
        for note in notes:
            logger.warning("resume is not exact: %s", note)

    def _adopt_envs(self, owners: Mapping[str, State], meta: Mapping[str, Any]) -> list[str]:
        training, evaluating = other_envs(meta["config"], self.config)
        if training:
            return [training]
        notes = [*self.runner.set_state(owners["runner"]), *(evaluating if "evaluator" in owners else ())]
        if evaluating or "evaluator" not in owners:
            self._drop_evaluator()
        else:
            self._evaluator = self._evaluator or self._make_evaluator()
            notes += self._evaluator.set_state(owners["evaluator"])
        return notes

    def close(self) -> None:
        """Release the envs and finish the run folder; may be called twice."""
        self._finish("finished", None)
        try:
            self.runner.close()
        finally:
            self._drop_evaluator()

    def _finish(self, status: Status, error: str | None) -> None:
        if self._run is not None:
            if self._run.record["status"] == "running":
                self._run.finish(status, error)
            self._run.close()

    stop = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            if isinstance(error, KeyboardInterrupt):
                self._finish("interrupted", None)
            else:
                self._finish("failed", f"{type(error).__name__}: {error}")
        self.close()


def load(path: str | os.PathLike[str], env: Any = None, *, resume: bool = True, **code: Any) -> Algorithm:
    """The algorithm of a checkpoint, to go on exactly where it was saved.

    A checkpoint names no code to import: what was code comes from the caller, or from what is registered.

    Args:
        path: the checkpoint's folder, or a run's, see :func:`~steppe.loading.checkpoint_at`.
        env: the env, where the run had a class, a function or a file.
        resume: bring the envs back to where they were; False takes what was learned, with fresh envs.
        code: further settings, under any of their names. The run gets a folder of its own, unless
            ``run_dir`` is among them.

    Raises:
        CheckpointError: it is damaged, belongs to other spaces or networks, or code is missing; the message
            lists what to pass.
        ConfigError: a setting is unknown or illegal.
    """
    folder, owners, meta = read_run(path)
    config = saved_config(folder, meta, {**code, **({} if env is None else {"env": env})})
    algorithm: Algorithm = config.build()
    try:
        algorithm._adopt(owners, meta, resume=resume)
    except BaseException:
        algorithm.close()
        raise
    return algorithm
