"""Modules of the user's own: made for a space, tried once, and put where the built-in ones stand."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.spaces import (
    BadLeaf,
    BoxSpec,
    DictSpec,
    DiscreteSpec,
    MultiBinarySpec,
    MultiDiscreteSpec,
    SequenceSpec,
    Spec,
    TupleSpec,
    collect,
    leaves,
    map_leaves,
    narrowed,
    rows,
    summary,
    zeros,
)
from steppe.types import Array, Tree


@final
class Own(eqx.Module):
    """A module of the user's, whose arrays are parameters like any others.

    Attributes:
        arrays: the module, None where it holds anything but an array.
        rest: the module, None where it holds an array.
        keys: of a Dict observation, those that it is given.
        name: what messages call it.
    """

    arrays: Any
    rest: Any = eqx.field(static=True)
    keys: tuple[str, ...] | None = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def __call__(self, obs: Tree) -> Any:
        """What it makes of one observation."""
        seen = obs if self.keys is None else {key: obs[key] for key in self.keys}
        return eqx.combine(self.arrays, self.rest)(seen)


def made(
    role: str, build: Callable[..., Any], spec: Spec, rng: np.random.Generator, *sizes: int
) -> tuple[Own, Any]:
    """The user's module for a space, and what it makes of one observation.

    Args:
        role: its key in the setting ``models``.
        build: the class; called with the space, ``sizes`` and a key.
        spec: what it sees.
        rng: draws the key.
        sizes: further arguments.

    Raises:
        ConfigError: it is no Equinox module, holds an array that cannot be learned, or numbers that are not
            finite come out.
        Exception: what it raised.
    """
    name = getattr(build, "__name__", type(build).__name__)
    said, space = f"models[{role!r}]={name}", gymnasium_space(spec)
    try:
        module = build(space, *sizes, jax.random.key(int(rng.integers(2**32))))
        own = _parted(said, module, spec, name)
        made = jax.jit(lambda own, obs: own(obs))(own, _example(spec, space))
    except Exception as error:
        if not isinstance(error, ConfigError):
            error.add_note(f"steppe: while making {said} for {summary(spec)}")
        raise
    for part in jax.tree.leaves((own, made)):
        if not np.isfinite(part).all():
            raise ConfigError(f"{said} makes numbers that are not finite, before any training")
    return own, made


_PLACES = ("encoder", "actor_critic", "distribution")
_MEMBERS = ("param_size", "noise_size", "sample", "mode", "logp", "entropy", "to_env", "from_env")


@final
class OwnDistribution:
    """What a distribution of the user's own has to offer, and the trial that says so.

    The class is called with the action space. Each method is for one row, in JAX, but for the last two, which
    translate numpy columns. An action has the structure of the space, in units of the distribution's choice.

    - ``param_size``: numbers P that the network gives; ``noise_size``: uniforms K of a draw.
    - ``sample(params (P,), noise (K,))``: the action that this noise in the open (0, 1) picks.
    - ``mode(params)``: the action that is taken without exploration.
    - ``logp(params, action)``: its log-probability ``()``, in whatever units as long as they stay the same.
    - ``entropy(params)``: ``()``, or an estimate.
    - ``to_env(action)``, ``from_env(action)``: a column ``(n, ...)`` in the env's units, and back.

    Attributes:
        made: the user's.
        param_size: P.
        noise_size: K.
        to_env: as above.
        from_env: as above.

    Raises:
        ConfigError: something of it is missing, or an action that it draws does not fit.
    """

    def __init__(self, build: Callable[..., Any], spec: Spec) -> None:
        name = getattr(build, "__name__", type(build).__name__)
        said = f"models['distribution']={name}"
        self.made = made = build(gymnasium_space(spec))
        if absent := [member for member in _MEMBERS if getattr(made, member, None) is None]:
            raise ConfigError(f"{said} lacks {', '.join(absent)}; it needs {', '.join(_MEMBERS)}")
        self.param_size, self.noise_size = int(made.param_size), int(made.noise_size)
        self.to_env, self.from_env = made.to_env, made.from_env
        params, noise = jnp.zeros(self.param_size), jnp.full(self.noise_size, 0.5)

        @jax.jit
        def tried(params: jax.Array, noise: jax.Array) -> Any:
            action = made.sample(params, noise)
            return action, made.mode(params), made.logp(params, action), made.entropy(params)

        drawn, mode, *numbers = tried(params, noise)
        forms = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), action) for action in (drawn, mode)]
        if forms[0] != forms[1]:
            raise ConfigError(f"{said}: sample gives {forms[0]}, mode {forms[1]}; both are actions alike")
        for method, number in zip(("logp", "entropy"), numbers, strict=True):
            if number.shape:
                raise ConfigError(f"{said}: {method} gives an array of shape {number.shape}, not one number")
            if not np.isfinite(number):
                raise ConfigError(f"{said}: {method} gives {number} for parameters that are 0")
        for action in (drawn, mode):
            self._check_env(said, spec, map_leaves(lambda leaf: np.asarray(leaf)[None], action))

    def sample(self, params: jax.Array, noise: jax.Array) -> Tree:
        """Of rows along any leading axes; likewise the others."""
        return _over_rows(self.made.sample, params)(params, noise)

    def mode(self, params: jax.Array) -> Tree:
        """What is taken without exploration."""
        return _over_rows(self.made.mode, params)(params)

    def logp(self, params: jax.Array, action: Tree) -> jax.Array:
        """``(...)``."""
        logp: jax.Array = _over_rows(self.made.logp, params)(params, action)
        return logp

    def entropy(self, params: jax.Array, action: Tree) -> jax.Array:
        """``(...)``."""
        entropy: jax.Array = _over_rows(self.made.entropy, params)(params)
        return entropy

    def _check_env(self, said: str, spec: Spec, column: Tree) -> None:
        """Try the way to env units and back."""
        try:
            env = self.to_env(column)
            collect(spec, rows(spec, env), None, "action")
            back = self.from_env(env)
        except BadLeaf as bad:
            raise ConfigError(f"{said}: to_env gives what is no column of actions: {bad}") from None
        if [np.shape(leaf) for leaf in leaves(back)] != [np.shape(leaf) for leaf in leaves(column)]:
            raise ConfigError(f"{said}: from_env(to_env(action)) has another shape than the action")


def _over_rows(function: Callable[..., Any], params: jax.Array) -> Callable[..., Any]:
    """A function of one row for rows along all leading axes of the parameters."""
    for _ in range(params.ndim - 1):
        function = jax.vmap(function)
    return function


@final
class OwnEncoder(eqx.Module):
    """An encoder of the user's own; what :class:`~steppe.models.encoders.Encoder` is."""

    own: Own
    size: int = eqx.field(static=True)

    def __init__(self, build: Callable[..., Any], spec: Spec, rng: np.random.Generator) -> None:
        self.own, vector = made("encoder", build, spec, rng)
        self.size = check_vector("encoder", self.own, vector)

    def __call__(self, obs: Tree) -> jax.Array:
        """One observation to ``(size,)``."""
        vector: jax.Array = self.own(obs)
        return vector

    def describe(self) -> dict[str, Any]:
        """All but its arrays, of which there is only the name."""
        return {"kind": "custom", "name": self.own.name}


def judged(cls: str, models: Any) -> Any:
    """The setting ``models`` of a class, once it is known that they can be made.

    Raises:
        ConfigError: a key means nothing, or is given what is no class.
    """
    for key, build in models.items() if isinstance(models, Mapping) else ():
        if key not in _PLACES:
            near = difflib.get_close_matches(str(key), _PLACES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{cls}: models[{key!r}]: the keys are {', '.join(_PLACES)}{hint}")
        if not isinstance(build, type | FunctionType | partial):
            raise ConfigError(
                f"{cls}: models[{key!r}]={build!r:.40}: give the class itself, or a function that makes an "
                "object of it, not an object"
            )
    return models


def own_encoder(config: Any) -> Any:
    """What makes an encoder of the user's own, for an algorithm that has a use for no other model.

    Args:
        config: of the algorithm.

    Raises:
        ConfigError: there is another model.
    """
    for key in config.models.keys() - {"encoder"}:
        raise ConfigError(
            f"{config.algo_name}: models[{key!r}] is for algorithms with a policy and one value, such as "
            'PPOConfig; use that, or leave it at "encoder"'
        )
    return config.models.get("encoder")


def check_vector(role: str, own: Own, made: Any, size: int | None = None) -> int:
    """The length of a vector that a module made.

    Raises:
        ConfigError: it is no float32 vector, or not of that size.
    """
    wanted = "(size,)" if size is None else f"({size},)"
    if (
        not isinstance(made, jax.Array)
        or made.ndim != 1
        or made.shape[0] < 1
        or size not in (None, len(made))
    ):
        raise ConfigError(
            f"models[{role!r}]={own.name} makes {_shape(made)} of one observation, not {wanted}"
        )
    _check_float(role, own, made)
    return len(made)


def check_number(role: str, own: Own, made: Any) -> None:
    """Judge a value that a module made.

    Raises:
        ConfigError: it is no float32 of shape ().
    """
    if not isinstance(made, jax.Array) or made.shape:
        raise ConfigError(
            f"models[{role!r}]={own.name} makes {_shape(made)} as the value of one observation, not ()"
        )
    _check_float(role, own, made)


def _check_float(role: str, own: Own, made: jax.Array) -> None:
    if made.dtype != jnp.float32:
        raise ConfigError(
            f"models[{role!r}]={own.name} makes {made.dtype}, not float32: end with .astype(jnp.float32)"
        )


def _shape(made: Any) -> str:
    if not isinstance(made, jax.Array):
        return f"a {type(made).__name__}"
    return f"an array of shape {made.shape}"


def _parted(said: str, module: Any, spec: Spec, name: str) -> Own:
    """A module's arrays and the rest of it."""
    if not isinstance(module, eqx.Module):
        raise ConfigError(
            f"{said} made {module!r:.40}, which is no Equinox module: write class {name}(equinox.Module)"
        )
    learned, rest = eqx.partition(module, _is_learned)
    for path, leaf in jax.tree_util.tree_leaves_with_path(rest):
        if isinstance(leaf, np.ndarray | jax.Array):
            raise ConfigError(
                f"{said}: {jax.tree_util.keystr(path)} is an array of {leaf.dtype}, which cannot be learned; "
                "make constants in __call__, and keep settings as equinox.field(static=True)"
            )
    arrays = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), learned)
    keys = tuple(key for key, _ in spec.items) if isinstance(spec, DictSpec) else None
    return Own(arrays, rest, keys, name)


def _is_learned(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _example(spec: Spec, space: Any) -> Tree:
    """One observation out of the space, as compiled functions get it."""
    space.seed(0)
    try:
        column = collect(spec, [space.sample()], None)
    except BadLeaf:  # a Sequence's samples may be longer than its maximum
        column = zeros(spec, 1)
    return map_leaves(lambda leaf: _narrow(leaf[0]), narrowed(spec, column))


def _narrow(leaf: Any) -> Array:
    """64-bit numbers in 32 bits, as JAX takes them."""
    array = np.asarray(leaf)
    return array.astype(f"{array.dtype.kind}4") if array.dtype.itemsize == 8 else array


def gymnasium_space(spec: Spec) -> Any:
    """A space of Gymnasium's that a spec describes."""
    from gymnasium import spaces

    if isinstance(spec, BoxSpec):
        low, high = (np.broadcast_to(bound, spec.shape) for bound in (spec.low, spec.high))
        return spaces.Box(low, high, spec.shape, spec.dtype)
    if isinstance(spec, DiscreteSpec):
        return spaces.Discrete(int(spec.n), start=int(spec.start))
    if isinstance(spec, MultiDiscreteSpec):
        return spaces.MultiDiscrete(spec.nvec, dtype=spec.dtype, start=spec.start)
    if isinstance(spec, MultiBinarySpec):
        return spaces.MultiBinary(spec.shape)
    if isinstance(spec, DictSpec):
        return spaces.Dict({key: gymnasium_space(part) for key, part in spec.items})
    if isinstance(spec, TupleSpec):
        return spaces.Tuple([gymnasium_space(part) for part in spec.items])
    if isinstance(spec, SequenceSpec):
        return spaces.Sequence(gymnasium_space(spec.item))
    return spaces.OneOf([gymnasium_space(part) for part in spec.items])
