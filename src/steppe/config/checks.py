"""What single fields accept beyond their type, and what the settings of one config say together."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from steppe.config.fields import Check
from steppe.config.values import has_text_keys, short
from steppe.errors import ConfigError

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig

_NO_SPACE = (bool, int, float, str, list, tuple, set, type)


def parsed_space(what: str, _: type, value: Any) -> Any:
    """A space, also from its description, as ``to_dict`` writes it.

    Raises:
        SpaceError: it is none, or one that cannot be handled; the message calls it ``what`` space.
    """
    if isinstance(value, _NO_SPACE):
        return value  # SPACE says so
    from steppe.spaces import from_description, spec_of

    if isinstance(value, dict):
        return from_description(value)
    # How long a Sequence gets may be set later; whether it is a space can be said now.
    spec_of(value, max_sequence_length=1, name=what)
    return value


def squared_kernels(_: type, value: Any) -> Any:
    """Old filters ``[channels, [k, k], stride]`` as ``[channels, k, stride]``."""
    rows = value.tolist() if callable(getattr(value, "tolist", None)) else value
    if not isinstance(rows, list | tuple):
        return rows
    return [_one_kernel(row) if isinstance(row, list | tuple) else row for row in rows]


def kind_of_memory(_: type, value: Any) -> Any:
    """A number is the resource that RLlib names so, of which there is none here; True is an LSTM's."""
    if isinstance(value, bool):
        return "lstm" if value else "none"
    return "none" if isinstance(value, int | float) and value >= 0 else value


def _one_kernel(row: Any) -> list[Any]:
    return [x[0] if isinstance(x, list | tuple) and len(x) == 2 and x[0] == x[1] else x for x in row]


def _are_filters(value: list[list[int]]) -> bool:
    return bool(value) and all(len(row) == 3 and min(row) >= 1 for row in value)


def listed_ids(_: type, value: Any) -> Any:
    """Ids of policies as a list."""
    return sorted(value, key=str) if isinstance(value, set | frozenset) else value


def _are_ids(value: Any) -> bool:
    return callable(value) or (isinstance(value, list | tuple) and all(isinstance(id, str) for id in value))


_CALLS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("agent_id",), ()),
    (("agent_id", "episode"), ()),
    (("agent_id", "episode", "worker"), ()),
    (("agent_id", "episode"), ("worker",)),
    (("agent_id",), ("episode", "worker")),
    (("agent_id",), ("worker",)),
    (("agent_id",), ("episode",)),
)
"""Arguments, by position and by name, with which a ``policy_mapping_fn`` may be called."""


def parsed_mapping(cls: type[AlgorithmConfig], value: Any) -> Any:
    """``policy_mapping_fn``, once it is known that it can be called.

    Raises:
        ConfigError: it takes other arguments than it is given.
    """
    if not callable(value):
        return value  # FUNCTION says so
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # builtins say nothing
        return value
    if not any(_binds(signature, *call) for call in _CALLS):
        raise ConfigError(
            f"{cls.__name__}: policy_mapping_fn takes {signature}, and it is given the agent's id, the "
            "episode and the worker: write (agent_id), (agent_id, episode) or (agent_id, episode, worker)"
        )
    return value


def _binds(signature: inspect.Signature, positions: tuple[str, ...], names: tuple[str, ...]) -> bool:
    try:
        signature.bind(*positions, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def parsed_models(cls: type[AlgorithmConfig], value: Any) -> Any:
    """``models``, once it is known that they can be made."""
    if value:  # most runs have no code of this kind
        from steppe.models.custom import judged

        value = judged(cls.__name__, value)
    return value


def _function_of(*names: str) -> Check:
    """A function that can be given so many arguments, by position."""

    def takes_them(value: Any) -> bool:
        try:
            return callable(value) and _binds(inspect.signature(value), names, ())
        except (TypeError, ValueError):  # builtins say nothing
            return True

    return Check(f"a function of ({', '.join(names)})", takes_them, whole=True)


POSTPROCESSING = _function_of("policy", "batch", "other_agent_batches", "episode")
EXTRA_LOSS = _function_of("params", "batch")
SPACE = Check("a Gymnasium space", lambda value: not isinstance(value, _NO_SPACE), whole=True)
CALLABLE = Check("a function", callable, whole=True)
INPUT = Check(
    "a PolicyServer, or a function of a context that returns one (learning from files is not available yet),",
    lambda value: not isinstance(value, type) and (callable(value) or hasattr(value, "build")),
    whole=True,
)
PARTS = Check(
    "a dict of encoder, pi, critic_encoder or vf: the name that the part is shared under",
    lambda value: value.keys() <= {"encoder", "pi", "critic_encoder", "vf"},
    whole=True,
)
FUNCTION = Check("a function of agent_id, episode and worker", callable, whole=True)
IDS = Check("a list of ids of policies, or a function of an id", _are_ids, whole=True)
POLICIES = Check("a set or list of ids, or a dict of id: None or PolicySpec", bool, whole=True)
FRAGMENT = Check("a whole number at least 1, or 'auto'", lambda v: v == "auto" or v >= 1, whole=True)
FILTERS = Check("[[channels, kernel, stride], ...]", _are_filters, whole=True)


# --- together -----------------------------------------------------------------------------------------------

_OF_MEMORIES = dict.fromkeys(("lstm", "gru"), ("attention_memory",)) | {
    "none": ("prev_action", "prev_reward", "attention_memory", "max_seq_len", "memory_size", "burn_in"),
    "attention": (),
}
"""What other kinds of memory have, and this has not."""
_OF_ENVS = ("env", "env_config", "max_episode_steps", "on_out_of_space")


def check_together(config: AlgorithmConfig) -> list[str]:
    """Check what several fields say together.

    Returns:
        What is to be said about settings that stand.

    Raises:
        ConfigError: fields contradict each other, or ask for what is not there yet.
    """
    name = type(config).__name__
    given = (config.observation_space, config.action_space)
    if config.env is None and None in given and (config.input is None or config.policies is None):
        raise ConfigError(
            f'{name}: env is missing: {name}(env="CartPole-v1"), or a class, or "file.py:Class"'
        )
    if config.evaluation_num_env_runners or config.env_step_timeout:
        from steppe.config.elsewhere import check_processes  # most runs are in one process

        check_processes(config)
    if config.squash_actions and not config.normalize_actions:
        raise ConfigError(f"{name}: squash_actions=True needs normalize_actions=True")
    on_policy = "replay_buffer_capacity" not in vars(config)
    if config.memory != "none" and on_policy and config.max_seq_len > config.train_batch_size:
        raise ConfigError(
            f"{name}: {config.spelt('max_seq_len')}, and an update learns from {config.train_batch_size} env "
            f"steps; write max_seq_len={config.train_batch_size} or less, or a larger train_batch_size"
        )
    _check_evaluation(config)
    from steppe.runners.policies import specs_of, trained_ids

    trained_ids(config, specs_of(config))
    return _notes(config)


def _check_evaluation(config: AlgorithmConfig) -> None:
    """Find the envs of evaluation, else they would be looked for after hours of training."""
    name, changes = type(config).__name__, config.evaluation_config
    own = [f"evaluation_config.{key}" for key in _OF_ENVS if key in changes]
    own += ["evaluation_num_envs"] if config.evaluation_num_envs is not None else []
    if config.evaluation_envs == "shared" and own:
        raise ConfigError(
            f'{name}: evaluation_envs="shared" evaluates in the training envs, and '
            f"{own[0]} asks for others; leave one of them out"
        )
    if "env" in changes or "env_config" in changes:
        from steppe.envs import registry

        try:
            registry.check(
                changes.get("env", config.env), {**config.env_config, **changes.get("env_config", {})}
            )
        except ConfigError as error:
            raise ConfigError(f"{name}: evaluation_config: {error}") from None


def _notes(config: AlgorithmConfig) -> list[str]:
    notes = []
    fragment = config.fragment_length * config.envs
    batch = math.ceil(config.train_batch_size / fragment) * fragment
    replays = "replay_buffer_capacity" in vars(config)  # then a batch is of remembered rows
    if batch != config.train_batch_size and config.batch_mode == "truncate_episodes" and not replays:
        notes.append(
            f"{config.spelt('train_batch_size')} is no multiple of {config.envs} envs x "
            f"{config.fragment_length} steps: each update learns from {batch} steps"
        )
    changed = config.changes()
    unused = [name for name in _OF_MEMORIES[config.memory] if name in changed]
    if config.policies is None and any(config.spelling(name) == name for name in unused):
        notes.append(
            f"{config.spelt(unused[0])} has no effect with memory={config.memory!r}; memory is one of "
            "lstm, gru and attention"
        )
    minibatch = vars(config).get("minibatch_size")  # a field of the algorithms that have minibatches
    if minibatch is not None and minibatch > config.train_batch_size:
        notes.append(
            f"{config.spelt('minibatch_size')} is more than {config.spelt('train_batch_size')}: "
            "the batch is one minibatch"
        )
    if config.num_learners:
        from steppe.config.learners import notes_on_learners  # most runs have one device

        notes += notes_on_learners(config)
    if not has_text_keys(config.env_config):
        notes.append(
            f"env_config={short(config.env_config)} has keys that are no text: envs get them as they are, "
            "the files of a run hold them as text, and load(path, env_config=...) takes them anew"
        )
    return notes


def unless_marked(cls: Any, value: Any) -> Any:
    """A flag; -1 is what RLlib writes for a setting that was not given."""
    return False if value == -1 else value
