"""Callbacks: the moments of a run at which code of the user's is called.

A hook that is not overridden costs nothing: which ones are is looked up once, when the run is built.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from steppe.errors import ConfigError
from steppe.types import AgentID, AsyncEnv, Policy, State

if TYPE_CHECKING:
    from steppe.sampling.episodes import Episode

Hook = Callable[..., None]
"""Takes the arguments that :data:`HOOKS` lists for it, by keyword."""

_EPISODE = ("worker", "base_env", "policies", "episode", "env_index")
HOOKS: dict[str, tuple[str, ...]] = {
    "on_algorithm_init": ("algorithm",),
    "on_sub_environment_created": ("worker", "sub_environment", "env_context", "env_index"),
    "on_episode_start": _EPISODE,
    "on_episode_step": _EPISODE,
    "on_episode_end": _EPISODE,
    "on_sample_end": ("worker", "samples"),
    "on_postprocess_trajectory": (
        *("worker", "episode", "agent_id", "policy_id", "policies"),
        *("postprocessed_batch", "original_batches"),
    ),
    "on_learn_on_batch": ("policy", "train_batch", "result"),
    "on_train_result": ("algorithm", "result"),
    "on_evaluate_start": ("algorithm",),
    "on_evaluate_end": ("algorithm", "evaluation_metrics"),
    "on_checkpoint": ("algorithm", "path"),
}
"""Every hook with the arguments that it may take; an override names those that it wants."""
OF_EPISODES = (
    "on_episode_start",
    "on_episode_step",
    "on_episode_end",
    "on_sample_end",
    "on_postprocess_trajectory",
)
"""Those that a :class:`~steppe.sampling.episodes.EpisodeHooks` calls."""
SYNONYMS = {"trainer": "algorithm", "env_runner": "worker", "env": "base_env"}
"""Further names of arguments, as other programs write them."""


class Callbacks:
    """Subclass it and override what you want; give the class to ``config.callbacks(...)``.

    Every hook is called with keyword arguments, of which an override takes those that it names, or all of
    them with ``**kwargs``. An exception in a hook stops the run and comes out as it is. Where runners are
    processes of their own, each has its own object: hooks of episodes and samples run there.
    """

    def on_algorithm_init(self, *, algorithm: Any) -> None:
        """The run is built; nothing was sampled yet."""

    def on_sub_environment_created(
        self, *, worker: Any, sub_environment: Any, env_context: Any, env_index: int
    ) -> None:
        """One env was made by its constructor; it was not reset yet."""

    def on_episode_start(
        self, *, worker: Any, base_env: AsyncEnv, policies: Any, episode: Episode, env_index: int
    ) -> None:
        """The first observations of an episode are there."""

    def on_episode_step(
        self, *, worker: Any, base_env: AsyncEnv, policies: Any, episode: Episode, env_index: int
    ) -> None:
        """An env step was taken, the last one of the episode included."""

    def on_episode_end(
        self, *, worker: Any, base_env: AsyncEnv, policies: Any, episode: Episode, env_index: int
    ) -> None:
        """The episode is over; what ``episode.custom_metrics`` holds is averaged into the result."""

    def on_sample_end(self, *, worker: Any, samples: Any) -> None:
        """A fragment is complete, see :class:`~steppe.sampling.sampler.Sample`."""

    def on_postprocess_trajectory(
        self,
        *,
        worker: Any,
        episode: Episode,
        agent_id: AgentID,
        policy_id: str,
        policies: Any,
        postprocessed_batch: dict[str, Any],
        original_batches: dict[AgentID, Any],
    ) -> None:
        """One agent's rows of one episode in a fragment; changed columns are learned from.

        Called when the fragment is complete, so the episode may be over. ``original_batches`` holds this
        fragment's rows of all agents of the episode, ``{agent: (policy, batch)}``.
        """

    def on_learn_on_batch(self, *, policy: Policy, train_batch: dict[str, Any], result: Any) -> None:
        """A batch ``(rows, lanes, ...)`` is about to be learned from.

        Changed columns are what is learned from; numbers put into ``result`` go to the statistics.
        """

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any]) -> None:
        """An iteration is over; ``result`` can be changed and added to before anybody sees it."""

    def on_evaluate_start(self, *, algorithm: Any) -> None:
        """An evaluation begins."""

    def on_evaluate_end(self, *, algorithm: Any, evaluation_metrics: dict[str, Any]) -> None:
        """An evaluation is over; ``evaluation_metrics`` can be changed and added to."""

    def on_checkpoint(self, *, algorithm: Any, path: Any) -> None:
        """A checkpoint was written to the folder ``path``."""

    def get_state(self) -> State:
        """What of this object goes into checkpoints: JSON values and numpy arrays."""
        return {}

    def set_state(self, state: State) -> None:
        """Go on from what :meth:`get_state` gave; not called where it gave nothing."""


def _named(text: str) -> Any:
    from steppe.envs.named_code import code_named  # most callbacks are classes

    return code_named(text, "callbacks")


def check_callbacks(given: Any) -> list[Any]:
    """The callbacks of a config: subclasses, objects, and texts that name a class, one or a list, as a list.

    Raises:
        ConfigError: it is something else, a hook is misspelt, or takes an argument that there is not.
    """
    parts = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    found = [_named(one) if isinstance(one, str) and ":" in one else one for one in parts]
    for one in found:
        cls = one if isinstance(one, type) else type(one)
        if not issubclass(cls, Callbacks):
            raise ConfigError(
                f"callbacks={one!r}: give a subclass of steppe.Callbacks, an object of one, a list of them, "
                'or "file.py:Class"'
            )
        _check(one)
    return found


def make_callbacks(given: Any) -> tuple[Callbacks, ...]:
    """The callbacks of a config, which :func:`check_callbacks` passes, as objects."""
    found = check_callbacks(given)
    for one in found:
        needed = inspect.signature(one).parameters.values() if isinstance(one, type) else ()
        if any(p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in needed):
            raise ConfigError(
                f"callbacks {one.__name__} takes arguments: give an object, {one.__name__}(...)"
            )
    return tuple(one() if isinstance(one, type) else one for one in found)


def get_callbacks_state(callbacks: Sequence[Callbacks]) -> State:
    """What each of them keeps, by its place."""
    return {str(i): one.get_state() for i, one in enumerate(callbacks)}


def set_callbacks_state(callbacks: Sequence[Callbacks], state: State) -> None:
    """Hand each of them back what it kept, if it kept anything."""
    for i, one in enumerate(callbacks):
        if state.get(str(i)):
            one.set_state(state[str(i)])


def hook_of(callbacks: Sequence[Callbacks], name: str) -> Hook | None:
    """One function for all overrides of a hook, in their order; None if there is none."""
    own = getattr(Callbacks, name)
    overrides = [
        _fitted(getattr(one, name))
        for one in callbacks
        if getattr(getattr(one, name), "__func__", None) is not own
    ]
    if len(overrides) <= 1:
        return overrides[0] if overrides else None

    def every(**arguments: Any) -> None:
        for override in overrides:
            override(**arguments)

    return every


def _check(one: Any) -> None:
    """Look at everything that is named like a hook, of a class or of an object."""
    cls = one if isinstance(one, type) else type(one)
    own = (
        {} if isinstance(one, type) else {k: v for k, v in getattr(one, "__dict__", {}).items() if k in HOOKS}
    )
    for name, value in [(name, inspect.getattr_static(cls, name)) for name in dir(cls)] + list(own.items()):
        where = f"{cls.__name__}.{name}"
        if not name.startswith("on_") or value is vars(Callbacks).get(name):
            continue
        if name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(HOOKS)}"
            raise ConfigError(f"{where} is no hook; {meant} A method of your own needs a name without on_")
        function = getattr(value, "__func__", value)
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise ConfigError(f"{where} must be a function, and not an async one; it is {value!r:.60}")
        parameters = list(inspect.signature(function).parameters.values())
        if name not in own and not isinstance(value, staticmethod):
            if not parameters or parameters[0].name in HOOKS[name]:
                raise ConfigError(f"{where} is a method: its first parameter is self")
            del parameters[0]
        _check_arguments(where, name, parameters)


def _check_arguments(where: str, name: str, parameters: Sequence[inspect.Parameter]) -> None:
    legal = [*HOOKS[name], *(new for new, old in SYNONYMS.items() if old in HOOKS[name])]
    for one in parameters:
        if one.kind is one.POSITIONAL_ONLY:
            raise ConfigError(f"{where} takes {one.name!r} by position; hooks get their arguments by keyword")
        if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) or one.name in legal:
            continue
        near = difflib.get_close_matches(one.name, legal, n=1)
        if near or one.default is one.empty:  # what has a default can do without
            meant = f"did you mean {near[0]!r}?" if near else f"it may take {', '.join(HOOKS[name])}"
            raise ConfigError(f"{where} takes {one.name!r}, which this hook is not given; {meant}")


def _fitted(method: Hook) -> Hook:
    """``method``, called with those arguments that it names."""
    parameters = inspect.signature(method).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()) and not SYNONYMS.keys() & parameters:
        return method
    everything = any(one.kind is one.VAR_KEYWORD for one in parameters.values())

    def fitted(**arguments: Any) -> None:
        for other, name in SYNONYMS.items():
            if other in parameters and name in arguments:
                arguments[other] = arguments[name]
        method(**{key: value for key, value in arguments.items() if everything or key in parameters})

    return fitted


class Surroundings(NamedTuple):
    """What hooks of one sampler are given beside the episode."""

    worker: Any
    base_env: AsyncEnv
    policies: Mapping[str, Policy]
