"""RLlib 1.x's callbacks: a class with its argument names, or a dict of functions that take one ``info``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from steppe.compat.absent import told
from steppe.compat.views import SampleBatch, shown
from steppe.errors import ConfigError
from steppe.sampling import callbacks as run
from steppe.sampling.callbacks import HOOKS, Callbacks, Hook, hook_of, make_callbacks

if TYPE_CHECKING:
    from steppe.compat.trainer import Trainer

Around = Callable[["Trainer", Hook, dict[str, Any]], None]
"""Calls a hook, with something before and after it."""

_INFO = {"base_env": "env", "policies": "policy", "algorithm": "trainer"}
_RENAMED = {"on_postprocess_traj": "on_postprocess_trajectory"}


class DefaultCallbacks(Callbacks):
    """The hooks of a run; override what you want.

    The arguments are called as RLlib 1.x calls them; what it calls ``trainer`` is the program's own trainer.

    Args:
        legacy_callbacks_dict: accepted; give a dict as ``config["callbacks"]`` instead.
    """

    def __init__(self, legacy_callbacks_dict: Mapping[str, Any] | None = None) -> None:
        if legacy_callbacks_dict:
            raise ConfigError('give a dict of functions as config["callbacks"], without a class around it')


def override(cls: type) -> Callable[[Any], Any]:
    """Say that a method overrides one of ``cls``.

    Raises:
        NameError: ``cls`` has no such method.
    """

    def check(method: Any) -> Any:
        if method.__name__ not in dir(cls):
            raise NameError(f"{method.__name__} does not override any method of {cls.__name__}")
        return method

    return check


def adapted(given: Any, trainer: Trainer) -> Callbacks:
    """The callbacks of a program, told the program's own trainer wherever steppe tells its algorithm.

    Args:
        given: what ``make_callbacks`` takes, or a dict of functions by name of a hook.
        trainer: may still be without its algorithm.

    Raises:
        ConfigError: no callbacks, or one that there is not.
    """
    objects = make_callbacks(_of_functions(given) if isinstance(given, Mapping) else given)
    hooks = {name: hook for name in HOOKS if (hook := hook_of(objects, name)) is not None}
    if hooks.keys() & {"on_episode_start", "on_episode_step"}:  # which may have filled hist_data
        hooks.setdefault("on_episode_end", lambda **_: None)
    members: dict[str, Any] = {name: _telling(name, hook, trainer) for name, hook in hooks.items()}
    members["get_state"] = lambda self: run.get_callbacks_state(objects)
    members["set_state"] = lambda self, state: run.set_callbacks_state(objects, state)
    cls: type[Callbacks] = type("ProgramCallbacks", (Callbacks,), members)
    return cls()


def _telling(name: str, hook: Hook, trainer: Trainer) -> Callable[..., None]:
    around: Around = _AROUND.get(name, lambda _, hook, arguments: hook(**arguments))

    def told(self: Callbacks, **arguments: Any) -> None:
        if "algorithm" in arguments:
            trainer.algorithm = arguments["algorithm"]  # the first hook comes before it is built
        around(trainer, hook, {key: shown(trainer, key, value) for key, value in arguments.items()})

    return told


def _train_result(trainer: Trainer, hook: Hook, arguments: dict[str, Any]) -> None:
    """The hook sees, and changes, what ``train()`` returns; steppe's own result learns what was changed."""
    values = arguments["result"]
    formed = trainer.formed(values)
    changed = dict(formed)
    hook(**{**arguments, "result": changed})
    trainer.told = formed | changed  # what was deleted is needed elsewhere
    values.update({key: value for key, value in changed.items() if value is not formed.get(key)})


def _evaluate_end(trainer: Trainer, hook: Hook, arguments: dict[str, Any]) -> None:
    metrics = arguments["evaluation_metrics"]
    around = {"evaluation": metrics}
    hook(**{**arguments, "evaluation_metrics": around})
    metrics.update(around["evaluation"])


def _episode_end(trainer: Trainer, hook: Hook, arguments: dict[str, Any]) -> None:
    hook(**arguments)
    if not arguments["worker"].in_evaluation:
        for name, values in arguments["episode"].hist_data.items():
            trainer.hist_data.setdefault(name, []).extend(values)


def _batch(argument: str) -> Around:
    def around(trainer: Trainer, hook: Hook, arguments: dict[str, Any]) -> None:
        columns = arguments[argument]
        batch = SampleBatch(columns)
        hook(**{**arguments, argument: batch})
        columns.clear()
        columns.update(batch)

    return around


_AROUND: dict[str, Around] = {
    "on_train_result": _train_result,
    "on_evaluate_end": _evaluate_end,
    "on_episode_end": _episode_end,
    "on_postprocess_trajectory": _batch("postprocessed_batch"),
    "on_learn_on_batch": _batch("train_batch"),
}


def _of_functions(functions: Mapping[str, Callable[[dict[str, Any]], Any]]) -> Callbacks:
    members: dict[str, Any] = {}
    for name, function in functions.items():
        hook = _RENAMED.get(name, name)
        if hook not in HOOKS:
            raise ConfigError(told('config["callbacks"]', str(name), [*HOOKS, *_RENAMED]))
        if not callable(function):
            raise ConfigError(f'callbacks["{name}"]={function!r}: give functions by name of a hook')
        members[hook] = _taking_info(function)
    cls: type[Callbacks] = type("FunctionCallbacks", (Callbacks,), members)
    return cls()


def _taking_info(function: Callable[[dict[str, Any]], Any]) -> Callable[..., None]:
    def hook(self: Callbacks, **arguments: Any) -> None:
        info = {_INFO.get(name, name): value for name, value in arguments.items()}
        if "postprocessed_batch" in info:
            before = info["original_batches"]
            info |= {"pre_batch": before[info["agent_id"]], "all_pre_batches": before}
            info["post_batch"] = info["postprocessed_batch"]
        function(info)

    return hook
