"""Every spelling of ``env``: from a name, a class, a function or a file to envs that are built."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from steppe.containers import copied
from steppe.envs.context import EnvContext
from steppe.envs.guards import show
from steppe.envs.gym import GymEnv
from steppe.errors import ConfigError
from steppe.seeding import env_seed
from steppe.types import AsyncEnv, SlotInfo, SpacePair

if TYPE_CHECKING:
    from steppe.envs.observing import Observing

GymnasiumEnv = gymnasium.Env[Any, Any]
logger = logging.getLogger("steppe")

_CONTEXT_NAMES = ("env_config", "config", "ctx")
REGISTERED: dict[str, Callable[..., Any]] = {}
_told: set[tuple[str, int, int]] = set()


def register_env(name: str, creator: Callable[..., Any]) -> None:
    """Make ``env=name`` mean ``creator``, in this process and in the runners that it starts.

    Args:
        name: any text; it wins over a Gymnasium id of the same name, and over an earlier registration.
        creator: a class or function that returns an env. It gets one :class:`EnvContext` if it has exactly
            one required positional parameter, or one named ``env_config``, ``config`` or ``ctx``; otherwise
            the env config as keywords; nothing if it takes nothing.

    Raises:
        ConfigError: the name is no text, or the creator cannot be called.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"register_env: the name is a non-empty text, not {name!r}")
    if not callable(creator):
        raise ConfigError(f"register_env({name!r}): give a class or a function, not {show(creator)}")
    REGISTERED[name] = creator


def is_registered(name: Any) -> bool:
    """Whether ``name`` is a name that this process has registered."""
    return isinstance(name, str) and name in REGISTERED


def make(env: Any, env_config: Mapping[str, Any] | None = None) -> GymnasiumEnv:
    """Build one env, from any spelling, as training would with ``worker_index`` 0; old ones are adapted.

    Raises:
        ConfigError: the spelling is unknown, ``env_config`` does not fit, or it is a vector env.
    """
    made: GymnasiumEnv = creator_of(env)(EnvContext(copied(dict(env_config or {}))))
    if is_vector(made) or is_base(made):
        made.close()
        kind = "vector env" if is_vector(made) else "BaseEnv"
        raise ConfigError(
            f"{env_name(env)} makes a {kind}, which cannot be used as one env; call it yourself, "
            "with an EnvContext"
        )
    return made


def check(env: Any, env_config: Mapping[str, Any] | None = None) -> None:
    """Find the env and try its arguments; nothing is built.

    Raises:
        ConfigError: the spelling is unknown, or ``env_config`` does not fit.
    """
    creator_of(env).check(EnvContext(env_config))


def env_name(env: Any) -> str:
    """A short name for folders and messages, such as ``CartPole-v1`` or ``SimpleCorridor``."""
    if env is None:
        return "external"
    if isinstance(env, str):
        name = env if env in REGISTERED else env.rpartition(":")[2]
    else:
        name = getattr(env, "__name__", type(env).__name__)
    return re.sub(r"[^\w.-]+", "-", name.replace("<lambda>", "")).strip("-.") or "env"


def creator_of(env: Any) -> Creator:
    """What builds one env of this spelling from its :class:`EnvContext`.

    Raises:
        ConfigError: the spelling is unknown, with the nearest known names.
    """
    if env is None:
        raise ConfigError(
            "env is None: nothing can be built; that is for served training, which takes observation_space "
            "and action_space instead; evaluate it with evaluation_config={'env': ...}"
        )
    if isinstance(env, str):
        return _creator_of_name(env)
    if _is_our(env, "jaxenvs.protocol", "JaxEnv"):
        return _Calling(env.as_gymnasium, env_name(env))
    if not callable(env) or is_made(env):
        raise ConfigError(
            f"env is {show(env)}: give the class or a function, so that any number of envs can be built"
        )
    return _Calling(env, env_name(env))


def build(
    env: Any,
    env_config: Mapping[str, Any] | None = None,
    *,
    num_envs: int,
    run_seed: int,
    worker_index: int = 0,
    num_workers: int = 0,
    seed_runner: int | None = None,
    created: Callable[[Any, EnvContext], object] = lambda env, context: None,
    pair_for: Callable[[SlotInfo], SpacePair] | None = None,
    observing: Observing | None = None,
    action_mask: str = "observation",
    decides: Callable[[Any], None] | None = None,
    **limits: Any,
) -> AsyncEnv:
    """Build exactly ``num_envs`` envs of one runner, each with a seed of its own.

    Where a vector env is built, there is one object, and its own ``num_envs`` counts; so does an external
    one's.

    Args:
        env: any spelling.
        env_config: what the constructors get; dicts and lists in it are copied for each env.
        num_envs: how many run in this process, ``vector_index`` 0 to ``num_envs - 1``.
        run_seed: root of the tree of seeds.
        worker_index: 0 in the driver, 1..N in runners.
        num_workers: N.
        seed_runner: place in the tree of seeds, ``worker_index`` if None.
        created: is called with each env once it is built, and with what it was built from.
        pair_for: the spaces of an agent of a multi-agent env that does not say them.
        observing: what is done to the observations of many agents.
        action_mask: ``"info"`` takes masks of the actions out of the infos.
        decides: is called with the :class:`~steppe.envs.driven.Decider` of envs that act by themselves.
        limits: see :class:`~steppe.envs.guards.Limits`, but for ``runner``.

    Raises:
        ConfigError: the spelling is unknown, ``env_config`` does not fit, or one agent's are to be observed.
        SpaceError: a space is missing or cannot be handled.
        Exception: whatever the constructor raised.
    """
    if num_envs < 1:
        raise ConfigError(f"the number of envs is at least 1, not {num_envs}")
    creator, place = creator_of(env), worker_index if seed_runner is None else seed_runner
    with contextlib.ExitStack() as on_failure:
        envs, wanted = list[Any](), num_envs
        while len(envs) < wanted:
            own = copied(dict(env_config or {}))  # what one env does to it is nobody else's business
            context = EnvContext(own, worker_index, len(envs), num_workers, num_envs=num_envs)
            envs.append(made_by(creator, context, env_name(env)))
            on_failure.callback(envs[-1].close)
            if is_vector(envs[-1]) or is_base(envs[-1]) or is_external(envs[-1]):
                num_envs, wanted = _counted(envs, num_envs, env_name(env))
            created(user_env(envs[-1]), context)
        seeds = [env_seed(run_seed, place, i) for i in range(num_envs)]
        every: dict[str, Any] = {"seeds": seeds, "runner": worker_index, **limits}
        every, envs = _masked(action_mask, envs, every, env_name(env))
        many = {"pair_for": pair_for, "observing": observing, **every}
        if observing is not None and not (is_base(envs[0]) or is_multi_agent(envs[0])):
            raise ConfigError(
                f"{env_name(env)} is no env of many agents: leave out observation_fn and add_agent_id, and "
                "change what it observes in the env, or in a Gymnasium wrapper around it"
            )
        if is_external(envs[0]):
            from steppe.envs.external_rows import ExternalRows  # most runs never see one

            built: AsyncEnv = ExternalRows(envs, decides=decides, **many)
        elif is_vector(envs[0]):
            from steppe.envs.vector import VectorRows  # most runs never see one

            built = VectorRows(envs[0], **every)
        elif is_base(envs[0]):
            from steppe.envs.base_env import BaseEnvRows

            built = BaseEnvRows(envs[0], **many)
        elif any(map(is_multi_agent, envs)):
            from steppe.envs.agents import MultiAgentRows

            if not all(map(is_multi_agent, envs)):
                raise ConfigError(f"{env_name(env)} made envs of one agent and of many: make one kind only")
            built = MultiAgentRows(envs, **many)
        else:
            built = GymEnv(envs, modern_step=_modern_step, **every)
        on_failure.pop_all()
    return built


def _masked(
    action_mask: str, envs: list[Any], limits: dict[str, Any], name: str
) -> tuple[dict[str, Any], list[Any]]:
    """The envs with masks in their observations, and what is left to say to their adapter."""
    if action_mask == "observation":
        return limits, envs
    from steppe.envs.masking import masked  # most envs have no masks

    low_level = is_base(envs[0]) or is_external(envs[0])
    return masked(envs, limits, name, low_level=low_level, together=is_vector(envs[0]))


def _counted(envs: list[Any], wanted: int, name: str) -> tuple[int, int]:
    """The number of envs in a vector env, and of such objects; that it is not what was wanted is said once.

    Raises:
        ConfigError: it is not the first env of its runner, or no number at all.
    """
    if is_external(envs[0]):
        return envs[0].num_envs, envs[0].num_envs
    if len(envs) > 1:
        raise ConfigError(f"{name} made an env first and a vector env then: make one kind only")
    n = getattr(envs[0], "num_envs", None)
    if n is None and is_base(envs[0]):
        n = len(envs[0].get_sub_environments()) or wanted
    if not isinstance(n, int | np.integer) or n < 1:
        fix = "call super().__init__(observation_space, action_space, num_envs)"
        raise ConfigError(f"{name}: num_envs of a vector env is at least 1, not {show(n)}; {fix}")
    n = int(n)
    if n != wanted and (name, n, wanted) not in _told:
        _told.add((name, n, wanted))
        logger.warning(
            "%s steps %d envs, %d were asked for (num_envs_per_env_runner): %d it is; a creator reads the "
            "number that is wanted from env_config.num_envs",
            *(name, n, wanted, n),
        )
    return n, 1


def is_vector(env: Any) -> bool:
    """Whether this is an object that steps many envs at once."""
    return isinstance(env, gymnasium.vector.VectorEnv) or _is_our(env, "envs.vector", "VectorEnv")


def is_base(env: Any) -> bool:
    """Whether this is a low-level env, which steps many envs at their own pace."""
    return _is_our(env, "envs.base_env", "BaseEnv")


def is_made(env: Any) -> bool:
    """Whether this is an env of any kind, and not what builds one."""
    return not isinstance(env, type) and (_is_env(env) or is_vector(env) or is_base(env))


def is_multi_agent(env: Any) -> bool:
    """Whether this is an env of many agents."""
    return _is_our(env, "envs.multi_agent", "MultiAgentEnv")


def is_external(env: Any) -> bool:
    """Whether this is an env that runs by itself."""
    return _is_our(env, "envs.external", "ExternalEnv")


def is_actor(env: Any) -> bool:
    """Whether this is the handle of a Ray actor, in which an env lives."""
    return type(env).__name__ == "ActorHandle" and type(env).__module__ == "ray.actor"


def user_env(env: Any) -> Any:
    """The env that the user's constructor gave, without what adapts it."""
    return env.env if _is_our(env, "envs.legacy_gym", "LegacyGym") else env


def _is_our(env: Any, module: str, name: str) -> bool:
    """Whether it is of this class, which is not imported for that: not loaded, it has no objects."""
    loaded = sys.modules.get(f"steppe.{module}")
    return loaded is not None and isinstance(env, getattr(loaded, name))


def made_by(creator: Creator, ctx: EnvContext, name: str) -> Any:
    """One env, or one vector env; what the constructor raises has a note that says whose it is."""
    try:
        return creator(ctx)
    except Exception as error:
        error.add_note(f"steppe: while building {name}, runner {ctx.worker_index}, env {ctx.vector_index}")
        raise


def _creator_of_name(name: str) -> Creator:
    if name in REGISTERED:
        return _Calling(REGISTERED[name], name)
    if name in gymnasium.registry:
        return _Making(name)
    from steppe.envs.named_code import attribute_of, code_named, module_named

    place, colon, attribute = name.rpartition(":")
    if not colon and name.endswith(".py"):
        raise ConfigError(f'env {name!r} is a file: add the class or function in it, "{name}:Class"')
    if not colon:
        raise _unknown(name)
    if place.endswith(".py"):
        return _Calling(code_named(name, "env"), attribute)
    module = module_named(place, f"env {name!r}")
    if attribute in gymnasium.registry:  # Gymnasium's own "module:Env-v0"
        return _Making(attribute)
    if attribute in REGISTERED and attribute not in vars(module):  # the import registered it
        return _Calling(REGISTERED[attribute], attribute)
    return _Calling(attribute_of(module, attribute, f"env {name!r}"), attribute)


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, [*REGISTERED, *gymnasium.registry], n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return ConfigError(
        f"no env named {name!r}{meant} Register it with steppe.register_env({name!r}, creator), or give "
        'a class, a function, "path/to/file.py:Class" or "package.module:Class"'
    )


@final
@dataclass(frozen=True)
class _Making:
    """Makes envs of a Gymnasium id."""

    name: str
    creator: None = None

    def __call__(self, ctx: EnvContext) -> GymnasiumEnv:
        self.check(ctx)
        # Our own guards judge what the env returns, by column.
        return _modern(gymnasium.make(self.name, **{"disable_env_checker": True, **ctx}))

    def check(self, ctx: EnvContext) -> None:
        """Raise ConfigError if the arguments do not fit."""
        spec = gymnasium.spec(self.name)
        point = spec.entry_point
        if point is not None:
            entry = load_env_creator(point) if isinstance(point, str) else point
            ours = ("max_episode_steps", "disable_env_checker")
            _fitting(entry, {**spec.kwargs, **{k: v for k, v in ctx.items() if k not in ours}}, self.name)


@final
@dataclass(frozen=True)
class _Calling:
    """Makes envs with a class or function of the user's."""

    creator: Callable[..., Any]
    name: str

    def __call__(self, ctx: EnvContext) -> Any:
        args, keywords = arguments_for(self.creator, ctx, self.name)
        env = self.creator(*args, **keywords)
        if any(of_kind(env) for of_kind in (is_vector, is_multi_agent, is_base, is_actor, is_external)):
            return env
        if _is_our(env, "jaxenvs.protocol", "JaxEnv"):
            env = env.as_gymnasium()
        if not _is_env(env) or isinstance(env, type):
            raise ConfigError(
                f"{self.name} made {show(env)}: that is not an env, which has reset, step and spaces"
            )
        return _modern(env)

    def check(self, ctx: EnvContext) -> None:
        """Raise ConfigError if the arguments do not fit."""
        arguments_for(self.creator, ctx, self.name)


Creator: TypeAlias = _Making | _Calling
"""What builds one env, or one vector env, from its :class:`EnvContext`; ``check`` tries the arguments."""


def _modern(env: Any) -> GymnasiumEnv:
    """The env itself if all its layers are plainly of today's Gymnasium, else adapted."""
    layer = env
    while _is_of_today(layer):
        if not isinstance(layer, gymnasium.Wrapper):
            modern: GymnasiumEnv = env
            return modern
        layer = layer.env
    from steppe.envs.legacy_gym import modernize  # most runs never need it

    return modernize(env)


def _is_of_today(env: Any) -> bool:
    signature = _signature(env.reset)
    if signature is None or not isinstance(env, gymnasium.Env):
        return False
    takes = signature.parameters
    other = "return_info" in takes or any(one.kind is one.VAR_KEYWORD for one in takes.values())
    return "seed" in takes and not other


def _modern_step(result: Any) -> Any:
    from steppe.envs.legacy_gym import modern_step

    return modern_step(result)


def arguments_for(
    creator: Callable[..., Any], ctx: EnvContext, name: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a user's class or function.

    Raises:
        ConfigError: ``env_config`` does not fit.
    """
    signature = _signature(creator)
    if signature is None:
        return (ctx,), {}
    plain = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in plain if p.default is p.empty]
    named = [p for p in plain if p.name in _CONTEXT_NAMES and p.kind != p.POSITIONAL_ONLY][:1]
    if named and required in ([], named):
        return (), {named[0].name: ctx}
    if len(required) == 1 and required[0].kind != inspect.Parameter.KEYWORD_ONLY:
        return (ctx,), {}
    _fitting(creator, ctx, name)
    return (), dict(ctx)


def _fitting(creator: Callable[..., Any], keywords: Mapping[str, Any], name: str) -> None:
    signature = _signature(creator)
    try:
        if signature is not None:
            signature.bind(**keywords)
    except TypeError as error:
        raise ConfigError(
            f"env_config does not fit {name}{signature}: {error}; env_config has {sorted(keywords, key=str)}"
            "; a parameter that is called env_config, or is the only one without a default, gets all of it"
        ) from None


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """What a function takes; None for builtins, which say nothing."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _is_env(thing: Any) -> bool:
    return callable(getattr(thing, "reset", None)) and callable(getattr(thing, "step", None))
