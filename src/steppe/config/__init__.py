"""Settings of an algorithm: one flat dataclass, three ways to write it, every mistake said at once.

    PPOConfig(env="CartPole-v1", lr=1e-3)
    PPOConfig().environment("CartPole-v1").training(lr=1e-3)
    PPOConfig.from_dict({"env": "CartPole-v1", "lr": 1e-3})

give equal objects. A field is checked when it is set; what several fields say together, in ``validate``.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from steppe.config import arguments
from steppe.config.checks import (
    CALLABLE,
    EXTRA_LOSS,
    FILTERS,
    FRAGMENT,
    FUNCTION,
    IDS,
    INPUT,
    PARTS,
    POLICIES,
    POSTPROCESSING,
    SPACE,
    check_together,
    kind_of_memory,
    listed_ids,
    parsed_mapping,
    parsed_models,
    parsed_space,
    squared_kernels,
    unless_marked,
)
from steppe.config.fields import Schedule as Schedule
from steppe.config.fields import above as above
from steppe.config.fields import at_least as at_least
from steppe.config.fields import between as between
from steppe.config.fields import each as each
from steppe.config.fields import field_docs as field_docs
from steppe.config.fields import field_specs as field_specs
from steppe.config.fields import policy_field as policy_field
from steppe.config.fields import run_field as run_field
from steppe.config.fields import scheduled as scheduled
from steppe.config.messages import say_once as say_once
from steppe.config.messages import show_messages
from steppe.config.names import NONE
from steppe.config.policies import PolicySpec as PolicySpec
from steppe.config.policies import described, parsed_callbacks, parsed_evaluation, parsed_policies
from steppe.config.reading import Reading, both_names, not_a_keyword, read
from steppe.config.values import (
    MismatchError,
    coerced,
    has_text_keys,
    is_plain,
    named,
    plain,
    same,
    short,
    without_none,
)
from steppe.containers import copied, frozen
from steppe.errors import ConfigError, SpaceError

if TYPE_CHECKING:
    from steppe.algorithm import Algorithm
    from steppe.learning.independent import PolicyLearner
    from steppe.types import SpacePair


_RESOURCES = [f"{what}_per_env_runner" for what in ("num_cpus", "num_gpus", "custom_resources")]
_RESOURCES += ["restart_failed_env_runners", "input"]  # RLlib has them under fault_tolerance, offline_data


@dataclass(kw_only=True, eq=False, repr=False)
class AlgorithmConfig(ABC):
    """What every algorithm can be told. Subclasses are dataclasses (``kw_only=True``) that add fields.

    Raises:
        ConfigError: a setting is unknown, or its value is of a wrong type or out of range.
    """

    algo_name: ClassVar[str]
    """Short name, such as "PPO"."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Named sets of changes to the defaults, for :meth:`preset`."""
    POLICY_SCOPE: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that policies of one run may set differently."""
    _frozen: ClassVar[bool] = False  # an instance that was built shadows it
    _written: ClassVar[Mapping[str, str]] = {}  # likewise: fields that were set under another name

    env: Any = run_field(None, section="environment")
    """The env: a registered name, a Gymnasium id, a class or function, "file.py:Class" or "module:Class"."""
    env_config: dict[Any, Any] = run_field({}, section="environment")
    """Handed to the env's constructor; every env gets a copy of its own."""
    observation_space: Any = run_field(
        None, section="environment", convert=partial(parsed_space, "observation"), check=SPACE
    )
    """Observation space, where the env does not say it."""
    action_space: Any = run_field(
        None, section="environment", convert=partial(parsed_space, "action"), check=SPACE
    )
    """Action space, where the env does not say it."""
    max_episode_steps: int | None = run_field(None, section="environment", check=at_least(1))
    """Episodes are truncated after so many env steps; None leaves it to the env."""
    on_out_of_space: Literal["warn", "raise", "clip"] = run_field("warn", section="environment")
    """What to do with finite observations outside their Box: warn once and count, raise, or clip."""
    max_sequence_length: int | None = run_field(None, section="environment", check=at_least(1))
    """Longest value of a Sequence space that does not declare a maximum."""
    on_env_error: Literal["raise", "restart"] = run_field("raise", section="environment")
    """An env that raises, or returns bad data, ends the run, or is made anew and begins a new episode."""
    max_env_restarts: int | None = run_field(None, section="environment", check=at_least(0))
    """How often one env is made anew before what it raises ends the run; None: any number of times."""
    action_mask: Literal["observation", "info"] = run_field("observation", section="environment")
    """Where "action_mask" is, the legal actions: in a Dict observation, or in the env's info."""
    normalize_actions: bool = run_field(True, section="environment")
    """Policies act in -1..1, mapped to the bounds of a bounded Box."""
    clip_actions: bool = run_field(True, section="environment")
    """Actions outside a Box are clipped before the env sees them."""
    squash_actions: bool = run_field(False, section="environment")
    """Bounded actions go through tanh instead of being clipped."""

    num_env_runners: int = run_field(0, section="env_runners", check=at_least(0))
    """Processes that sample, started by Ray; 0 samples in this process."""
    num_cpus_per_env_runner: float = run_field(1.0, section="env_runners", check=at_least(0))
    """CPUs, or a part of one, that Ray sets aside for each of these processes."""
    num_gpus_per_env_runner: float = run_field(0.0, section="env_runners", check=at_least(0))
    """GPUs, or a part of one, that it sets aside; with 0, actions are computed on the CPU."""
    custom_resources_per_env_runner: dict[str, float] = run_field({}, section="env_runners")
    """What else it sets aside for each, by the names that its machines were started with."""
    ray_address: str | None = run_field(None, section="env_runners")
    """The Ray to join, such as "auto"; None: RAY_ADDRESS or, without, one started on this machine."""
    local_mode: bool = run_field(False, section="env_runners")
    """All runners are in this process, one after the other, without Ray: for debuggers."""
    num_envs_per_env_runner: int = run_field(16, section="env_runners", check=between(1, 1 << 16))
    """Copies of the env that one runner steps."""
    remote_worker_envs: bool = run_field(False, section="env_runners")
    """Each of them in a process of its own, a Ray actor: where its steps take long."""
    remote_env_batch_wait_ms: float = run_field(0.0, section="env_runners", check=at_least(0))
    """With 0, act as soon as one such env has stepped; above, wait for all, at most so long."""
    rollout_fragment_length: int | Literal["auto"] = run_field("auto", section="env_runners", check=FRAGMENT)
    """Env steps per env in one fragment; "auto" splits the batch evenly over the envs."""
    batch_mode: Literal["truncate_episodes", "complete_episodes"] = run_field(
        "truncate_episodes", section="env_runners"
    )
    """Fragments end anywhere, or only at the end of episodes."""
    observation_filter: Literal["MeanStdFilter", "NoFilter"] = run_field(
        "MeanStdFilter", section="env_runners"
    )
    """Observations are shifted and scaled by their running mean and deviation, or left alone."""
    sample_async: bool = run_field(False, section="env_runners", convert=unless_marked)
    """Learn while the next fragment is sampled: where env steps are slow; by algorithms that allow it."""
    max_requests_in_flight_per_env_runner: int = run_field(2, section="env_runners", check=at_least(1))
    """Fragments that such a process, if there are any, is asked for ahead; with sample_async."""
    max_staleness: int | None = run_field(None, section="env_runners", check=at_least(0))
    """Fragments with a row that weights of more updates ago acted are discarded; with sample_async."""
    restart_failed_env_runners: bool = run_field(True, section="env_runners")
    """A process that dies, or hangs, is replaced; otherwise it ends the run."""
    max_memory_mb_per_env_runner: float | None = run_field(None, section="env_runners", check=above(0))
    """A process that samples and has more memory is replaced: where an env loses some all the time."""
    env_step_timeout: float | None = run_field(None, section="env_runners", check=above(0))
    """Seconds without a step after which a process that samples, or that a remote env is in, hangs."""
    input: Any = run_field(None, section="env_runners", check=INPUT)
    """What brings experience where no env is stepped: a PolicyServer, or a function that makes one."""
    explore: bool = run_field(True, section="env_runners")
    """Actions are sampled while training; otherwise the policy's best one is taken."""

    num_learners: int = run_field(0, section="resources", check=between(0, 8))
    """Devices that learn together, 1, 2, 4 or 8: the same whatever their number; 0 is one, without blocks."""

    gamma: float = policy_field(0.99, check=between(0, 1))
    """Discount per step."""
    lr: Schedule = policy_field(3e-4, check=scheduled(at_least(0)))
    """Learning rate, or a schedule [[env steps, value], ...]."""
    train_batch_size: int = policy_field(4000, check=at_least(1))
    """Env steps that one update learns from."""
    grad_clip: float | None = policy_field(0.5, check=above(0))
    """Largest global norm of a gradient; None does not clip."""
    fcnet_hiddens: list[int] = policy_field([64, 64], check=each(at_least(1)))
    """Sizes of the hidden layers."""
    fcnet_activation: Literal["tanh", "relu", "swish", "silu", "elu", "linear"] = policy_field("tanh")
    """Activation of the hidden layers."""
    vf_share_layers: bool = policy_field(False)
    """Policy and value function share their hidden layers."""
    models: dict[str, Any] = policy_field({}, convert=parsed_models)
    """Classes of your own in place of "encoder", "actor_critic" or "distribution"; see docs/models.md."""
    memory: Literal["none", "lstm", "gru", "attention"] = policy_field("none", convert=kind_of_memory)
    """What networks remember of a trajectory: nothing, a recurrent state, or rows that they look back on."""
    memory_size: int = policy_field(64, check=at_least(1))
    """Width of that memory."""
    max_seq_len: int = policy_field(20, check=at_least(1))
    """Rows that are learned from as one sequence where there is a memory."""
    prev_action: bool = policy_field(False)
    """The memory is given the action before, too."""
    prev_reward: bool = policy_field(False)
    """The memory is given the reward before, too."""
    attention_memory: int = policy_field(32, check=at_least(1))
    """Rows that attention looks back on."""
    framestack: int = policy_field(1, check=at_least(1))
    """Observations that networks see together: the newest and those before it."""
    action_embeddings: str | None = policy_field(None)
    """Key of the observation that describes each choice of a Discrete action by a row of numbers."""
    autoregressive_actions: bool = policy_field(False)
    """Parts of a nested action are chosen one after the other, each knowing those before it."""
    conv_filters: list[list[int]] | None = policy_field(None, check=FILTERS, convert=squared_kernels)
    """Convolutions of image observations, [[channels, kernel, stride], ...]; None chooses by image size."""
    mixed_precision: bool = policy_field(False)
    """Networks on images multiply numbers of 16 bits, parameters keep 32: GPUs move half as much."""
    free_log_std: bool = policy_field(True)
    """The deviation of continuous actions is a parameter of its own, not an output of the network."""
    critic_only: list[str] = policy_field([])
    """Leaves of a Dict observation that the critic sees and acting does not."""
    share: dict[str, str] = policy_field({}, section="multi_agent", check=PARTS)
    """Parts of the networks by the name that they are shared under: {"encoder": "trunk"}."""
    postprocess_trajectory: Any = policy_field(None, section="multi_agent", check=POSTPROCESSING)
    """Function of (policy, batch, other_agent_batches, episode) that may change or add columns."""
    extra_loss: Any = policy_field(None, check=EXTRA_LOSS)
    """Function of (params, batch), in JAX, whose value is added to the loss of each minibatch."""

    evaluation_interval: int | None = run_field(0, section="evaluation", check=at_least(0))
    """Iterations between evaluations; 0 or None never evaluates."""
    evaluation_duration: int = run_field(10, section="evaluation", check=at_least(1))
    """Episodes, or env steps, of one evaluation."""
    evaluation_duration_unit: Literal["episodes", "timesteps"] = run_field("episodes", section="evaluation")
    """What evaluation_duration counts."""
    evaluation_num_envs: int | None = run_field(None, section="evaluation", check=between(1, 1 << 16))
    """Envs that evaluate side by side; None takes as many as a runner has."""
    evaluation_num_env_runners: int = run_field(0, section="evaluation", check=at_least(0))
    """Processes that evaluate; 0 evaluates in this process."""
    evaluation_config: dict[str, Any] = run_field({}, section="evaluation", convert=parsed_evaluation)
    """Settings that differ while evaluating: the env, its arguments and limits, explore, callbacks."""
    evaluation_envs: Literal["separate", "shared"] = run_field("separate", section="evaluation")
    """Evaluate in envs of its own, or in the training envs, for a plant that exists once."""

    policies: Any = run_field(None, section="multi_agent", convert=parsed_policies, check=POLICIES)
    """Ids of the policies, or a dict of id: PolicySpec; None is the one policy "default_policy"."""
    policy_mapping_fn: Any = run_field(None, section="multi_agent", convert=parsed_mapping, check=FUNCTION)
    """Function of an agent's id, its episode and the worker that names the agent's policy."""
    policies_to_train: Any = run_field(None, section="multi_agent", convert=listed_ids, check=IDS)
    """Ids of the policies that learn, or a function of an id that says whether; None is all."""
    observation_fn: Any = run_field(None, section="multi_agent", check=CALLABLE)
    """Function of agent_obs, worker, base_env, policies and episode that gives the agents' observations."""
    add_agent_id: bool = run_field(False, section="multi_agent")
    """Agents observe which of the env's possible_agents they are."""

    callbacks_class: Any = run_field(None, section="callbacks", convert=parsed_callbacks)
    """A Callbacks subclass, an object of one, "file.py:Class", or a list; also .callbacks(MyCallbacks)."""

    checkpoint_freq: int = run_field(0, section="checkpointing", check=at_least(0))
    """Iterations between automatic checkpoints in the run folder; 0 saves none."""
    keep_checkpoints_num: int = run_field(3, section="checkpointing", check=at_least(1))
    """Newest checkpoints that are kept; the best one is kept beside them."""

    min_sample_timesteps_per_iteration: int = run_field(0, section="reporting", check=at_least(0))
    """An iteration goes on until it has sampled so many env steps."""
    min_time_s_per_iteration: float = run_field(0.0, section="reporting", check=at_least(0))
    """An iteration goes on for at least so many seconds."""
    metrics_num_episodes_for_smoothing: int = run_field(100, section="reporting", check=at_least(1))
    """Means are taken over so many last episodes, or over an iteration's where there are more."""
    run_dir: str | None = run_field(None, section="reporting")
    """Folder of the run; None counts up under runs/<Env>/."""
    write_run: bool = run_field(True, section="reporting")
    """Write the run folder: results, log and checkpoints."""

    seed: int | None = run_field(None, section="debugging", check=at_least(0))
    """The same seed gives the same run; None draws one and records it."""
    log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = run_field("WARN", section="debugging")
    """Least level of the messages of the logger "steppe"."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("__eq__", "__repr__"):  # else @dataclass on the subclass writes its own
            setattr(cls, name, getattr(AlgorithmConfig, name))
        own = {name: value for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}
        cls.POLICY_SCOPE |= {name for name, value in own.items() if value.metadata.get("scope") == "policy"}

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuse unknown names before the generated ``__init__`` turns them into a TypeError."""
        if args:
            raise ConfigError(f"{cls.__name__} takes settings by name: {cls.__name__}(env={args[0]!r})")
        for key in settings:
            if key not in field_specs(cls):
                raise ConfigError(not_a_keyword(cls, key))
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise ConfigError(
                f"{name}={short(value)}: this {type(self).__name__} was built and no longer changes; "
                f"change a copy: config.copy({name}=...)"
            )
        object.__setattr__(self, name, self.checked(name, value))
        self._remember({name: name})

    def __delattr__(self, name: str) -> None:
        """Refuse: a class's default would show instead."""
        spec = field_specs(type(self)).get(name)
        if spec is None:
            raise ConfigError(not_a_keyword(type(self), name))
        fix = f"config.copy({name}=...)" if self._frozen else f"config.{name} = {short(spec.default())}"
        raise ConfigError(f"{type(self).__name__}: {name} cannot be deleted; set it to its default, {fix}")

    def _remember(self, written: Mapping[str, str]) -> None:
        """Keep the names that fields were set by, where they are not the fields' own."""
        names = {**self._written, **written}
        object.__setattr__(self, "_written", {name: was for name, was in names.items() if was != name})

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(same(getattr(self, name), getattr(other, name)) for name in field_specs(type(self)))

    __hash__ = None  # type: ignore[assignment]  # a config changes

    def __repr__(self) -> str:
        changed = (f"{name}={short(named(value))}" for name, value in self.changes().items())
        return f"{type(self).__name__}({', '.join(changed)})"

    @abstractmethod
    def make_learner(self, id: str, pair: SpacePair, seed: int) -> PolicyLearner:
        """The learner of one policy.

        Args:
            id: of the policy.
            pair: its observation and action spaces.
            seed: differs for each policy of a run.
        """

    @classmethod
    def checked(cls, name: str, value: Any, written: str | None = None) -> Any:
        """``value`` as the field ``name`` stores it.

        Args:
            name: of the field.
            value: that it is to have.
            written: what the message calls it, if not by its name.

        Raises:
            ConfigError: no such field, or not a legal value; the text says what is legal.
        """
        spec = field_specs(cls).get(name)
        if spec is None:
            raise ConfigError(not_a_keyword(cls, name))
        if value is None and name in NONE:
            value = copy.copy(NONE[name])
        try:
            if spec.convert is not None and value is not None:
                value = spec.convert(cls, value)
            result = coerced(spec.hint, value)
            legal = result is None or spec.check is None or spec.check.test(result)
        except MismatchError:
            legal = False
        except SpaceError as error:
            raise ConfigError(f"{cls.__name__}: {written or name}={short(value)}: {error}") from None
        if not legal:
            raise ConfigError(f"{cls.__name__}: {written or name}={short(value)} must be {spec.legal()}")
        try:
            return copied(result)
        except RecursionError:
            raise ConfigError(
                f"{cls.__name__}: {written or name} holds itself, {short(value)}; an object of a class of "
                "yours may hold such a thing"
            ) from None

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The defaults with a named set of changes, then ``changes``."""
        if name not in cls.presets:
            raise ConfigError(f"{cls.__name__} has no preset {name!r}; it has {sorted(cls.presets)}")
        return cls.from_dict(cls.presets[name]).copy(**changes)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """A config from today's or RLlib's names, with nested ``model`` and ``multiagent`` dicts.

        Raises:
            ConfigError: unknown names, illegal values, or two spellings of one field that disagree.
        """
        return cls.from_reading(cls.reading(settings))

    @classmethod
    def from_reading(cls, reading: Reading) -> Self:
        """A config of what :meth:`reading` gave, whose messages use the names that were written."""
        config = cls(**reading.values)
        config._remember(reading.written)
        return config

    @classmethod
    def resolved(cls, settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """``settings`` under today's names, each value checked; keys without effect are said and left out.

        Args:
            settings: by name, today's or RLlib's.
            where: what stands before their names in messages.
        """
        return cls.reading(settings, where).values

    @classmethod
    def reading(cls, settings: Mapping[str, Any], where: str = "") -> Reading:
        """As :meth:`resolved`, with the names that the settings were written under."""
        reading = read(cls, settings, where)
        for note in reading.notes:
            say_once(note)
        return reading

    @classmethod
    def overrides(cls, **settings: Any) -> dict[str, Any]:
        """``settings`` as :meth:`resolved` gives them, for an ``evaluation_config`` or for one policy."""
        return cls.resolved(settings)

    def update_from_dict(self, settings: Mapping[str, Any]) -> Self:
        """Set what ``settings`` say, named as :meth:`from_dict` takes them; nothing, if one is wrong."""
        return self._set(self.reading(settings))

    def _set(self, reading: Reading) -> Self:
        for name, value in reading.values.items():
            setattr(self, name, value)
        self._remember(reading.written)
        return self

    def _section(self, section: str, settings: dict[str, Any], also: Iterable[str] = ()) -> Self:
        """Set fields of one fluent section: all of them or, if one is wrong, none."""
        reading = self.reading(settings)
        for name in reading.values:
            home = field_specs(type(self))[name].section
            if home != section and name not in also:
                raise ConfigError(
                    f"{type(self).__name__}: {both_names(reading.written[name], name)} belongs to "
                    f".{home}(...), not .{section}(...)"
                )
        return self._set(reading)

    def environment(self, env: Any = None, **settings: Any) -> Self:
        """Set the env, its arguments, and how its spaces are treated."""
        return self._section("environment", settings if env is None else {"env": env, **settings})

    def env_runners(self, **settings: Any) -> Self:
        """Set how experience is sampled."""
        return self._section("env_runners", settings, also=("max_episode_steps",))

    rollouts = exploration = env_runners

    def training(self, **settings: Any) -> Self:
        """Set how the algorithm learns, its networks included."""
        return self._section("training", settings)

    rl_module = training

    def evaluation(self, **settings: Any) -> Self:
        """Set when, where and how long the policy is evaluated."""
        return self._section("evaluation", settings)

    def multi_agent(self, **settings: Any) -> Self:
        """Set the policies and which agent acts with which."""
        return self._section("multi_agent", settings)

    def callbacks(self, callbacks_class: Any = None, **settings: Any) -> Self:
        """Set the code that is called as episodes begin, step and end."""
        given = {} if callbacks_class is None else {"callbacks_class": callbacks_class}
        return self._section("callbacks", given | settings)

    def checkpointing(self, **settings: Any) -> Self:
        """Set when checkpoints are written and how many are kept."""
        return self._section("checkpointing", settings)

    def reporting(self, **settings: Any) -> Self:
        """Set how long an iteration is and what is written."""
        return self._section("reporting", settings)

    def debugging(self, **settings: Any) -> Self:
        """Set the seed and the log level."""
        return self._section("debugging", settings)

    def framework(self, framework: str = "jax", **settings: Any) -> Self:
        """Accepted for old programs; there is one framework."""
        return self._section("framework", {"framework": framework, **settings})

    def resources(self, **settings: Any) -> Self:
        """Accepted for old programs, as are the sections below: what they hold is of the env runners."""
        return self._section("resources", settings, also=_RESOURCES)

    learners = offline_data = fault_tolerance = api_stack = experimental = python_environment = resources

    @property
    def fragment_length(self) -> int:
        """Env steps per env in one fragment, "auto" worked out."""
        if isinstance(self.rollout_fragment_length, int):
            return self.rollout_fragment_length
        return math.ceil(self.train_batch_size / self.envs)

    @property
    def envs(self) -> int:
        """Envs that sample, over all runners."""
        return self.num_envs_per_env_runner * max(1, self.num_env_runners)

    @property
    def action_settings(self) -> dict[str, Any]:
        """Arguments of a :class:`~steppe.models.distributions.Distribution` besides its space."""
        return arguments.of_actions(self)

    @property
    def image_filters(self) -> Any:
        """The ``conv_filters`` of a network, which say its precision, too."""
        return arguments.of_images(self)

    @property
    def model_settings(self) -> dict[str, Any]:
        """Arguments of :class:`~steppe.learning.networks.ActorCriticNetworks` besides the spaces."""
        return arguments.of_networks(self)

    @property
    def learning_settings(self) -> dict[str, Any]:
        """Arguments of a :class:`~steppe.learning.on_policy.OnPolicyLearner`, whatever its method."""
        return arguments.of_learning(self)

    def validate(self) -> None:
        """Check what several fields say together; ``build`` calls it.

        Sizes that do not divide are rounded by the algorithm and said here, once.

        Raises:
            ConfigError: fields contradict each other, or ask for what is not there yet.
        """
        for name in field_specs(type(self)):  # a list may have changed since it was set
            self.checked(name, getattr(self, name))
        for note in check_together(self):
            say_once(note)

    def spelling(self, name: str) -> str:
        """The name that a field was set by: its own, or an old one."""
        return self._written.get(name, name)

    def spelt(self, name: str) -> str:
        """A setting for messages: ``num_workers=2 (num_env_runners)``."""
        return both_names(self.spelling(name), name, getattr(self, name))

    def code_fields(self) -> list[str]:
        """Names of the fields that hold code, or name a file of it: plain data cannot give them back."""
        values = {name: getattr(self, name) for name in field_specs(type(self))}
        for data in ("env_config", "observation_space", "action_space"):
            del values[data]
        values["env_config"] = None if has_text_keys(self.env_config) else self.env_config
        values["policies"] = [[spec.policy_class, spec.config] for spec in (self.policies or {}).values()]
        texts = {"env": self.env, "callbacks_class": self.callbacks_class}
        texts["evaluation_config"] = self.evaluation_config.get("env")
        files = {name: isinstance(text, str) and ":" in text for name, text in texts.items()}
        return sorted(name for name, value in values.items() if files.get(name) or not is_plain(value))

    def build(self, env: Any = None) -> Algorithm:
        """The algorithm, ready to train; from then on this config does not change.

        Args:
            env: sets ``env`` first, if given.

        Raises:
            ConfigError: see :meth:`validate`.
        """
        from steppe.algorithm import Algorithm  # late: the one upward import

        if env is not None:
            self.env = env
        self.validate()
        show_messages(self.log_level)
        algorithm = Algorithm(self)
        for config in (self, algorithm.config):  # two, where the algorithm drew a seed
            config._freeze()
        return algorithm

    build_algo = build

    def _freeze(self) -> None:
        for name in field_specs(type(self)):
            object.__setattr__(self, name, frozen(getattr(self, name)))
        if self.policies is not None:
            own = {id: spec.frozen() for id, spec in self.policies.items()}
            object.__setattr__(self, "policies", frozen(own))
        object.__setattr__(self, "_frozen", True)

    def copy(self, copy_frozen: bool | None = None, **changes: Any) -> Self:
        """A config of its own with ``changes``.

        Args:
            copy_frozen: True for one that only reads; else it is free to change even if this one was built.
            changes: named as :meth:`from_dict` takes them.
        """
        if not isinstance(copy_frozen, bool | None):
            raise ConfigError(f"copy takes settings by name: config.copy(lr=...), not {short(copy_frozen)}")
        reading = self.reading(changes)
        values = {name: getattr(self, name) for name in field_specs(type(self))} | reading.values
        config = self.from_reading(Reading(values, [], {**self._written, **reading.written}))
        if copy_frozen:
            config._freeze()
        return config

    def changes(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        defaults = {name: spec.default() for name, spec in field_specs(type(self)).items()}
        return {n: getattr(self, n) for n, default in defaults.items() if not same(getattr(self, n), default)}

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; code stands as its name, spaces as their description."""
        values = {name: getattr(self, name) for name in field_specs(type(self))}
        for name in ("observation_space", "action_space"):
            values[name] = described(values[name], self.max_sequence_length)
        if self.policies is not None:
            values["policies"] = {
                id: spec.to_dict(self.max_sequence_length) for id, spec in self.policies.items()
            }
        return {name: plain(value) for name, value in values.items()}

    def to_toml_dict(self) -> dict[str, Any]:
        """``to_dict`` without None, which TOML lacks: left out, or "none" where it is not the default."""
        specs = field_specs(type(self))
        values = {
            name: "none" if value is None and specs[name].default() is not None else value
            for name, value in self.to_dict().items()
        }
        return dict(without_none(values))


AlgorithmConfig.POLICY_SCOPE = frozenset(
    f.name for f in dataclasses.fields(AlgorithmConfig) if f.metadata.get("scope") == "policy"
)
