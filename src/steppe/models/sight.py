"""Observations of which not everybody sees everything: masks of actions, and leaves for the critic alone."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steppe.errors import ConfigError, EnvError, SpaceError, SteppeError
from steppe.models.actions import Actions, Choices
from steppe.models.observations import MASK, Embeddings, Sight
from steppe.spaces import (
    BadLeaf,
    BoxSpec,
    DictSpec,
    DiscreteSpec,
    MultiBinarySpec,
    MultiDiscreteSpec,
    Spec,
    summary,
)
from steppe.spaces.columns import keyed
from steppe.types import Array, AsyncEnv, SlotInfo, SpacePair, Tree

_PATH = keyed("obs", MASK)


def sight_of(
    pair: SpacePair, critic_only: Collection[str], share_layers: bool, embeddings: str | None = None
) -> Sight:
    """Who sees what of an observation.

    Args:
        pair: what is observed and what is chosen.
        critic_only: keys of the observation that acting does not read.
        share_layers: whether the critic is made of the actor's features.
        embeddings: key of the observation that describes the choices.

    Raises:
        ConfigError: a mask or ``embeddings`` do not fit the actions, ``critic_only`` names what cannot be
            hidden, or nothing is left to act on.
    """
    whole, masked = pair.observation, _is_masked(pair)
    described = None if embeddings is None else _embeddings(pair, embeddings)
    needed = ([MASK] if masked else []) + ([] if described is None else [described.key])
    if critic_only:
        _check_hidden(whole, critic_only, needed, share_layers)
    acting = without(whole, critic_only)
    if isinstance(acting, DictSpec) and {key for key, _ in acting.items} == {*needed}:
        raise ConfigError(
            f"{summary(whole)} holds {' and '.join(_whats(needed))} and nothing else to act on; observe "
            "something beside it, if only a constant"
        )
    actor, critic = without(acting, needed), without(whole, needed)
    return Sight(whole, acting, actor, critic, masked, tuple(sorted(critic_only)), described)


def without(spec: Spec, keys: Collection[str]) -> Spec:
    """A Dict space without some keys; any other as it is."""
    if not keys or not isinstance(spec, DictSpec):
        return spec
    return DictSpec(tuple((key, part) for key, part in spec.items if key not in keys))


def _is_masked(pair: SpacePair) -> bool:
    """Whether the observation has a mask of the actions.

    Raises:
        ConfigError: what stands in its place does not fit them.
    """
    leaf = dict(pair.observation.items).get(MASK) if isinstance(pair.observation, DictSpec) else None
    if leaf is None or not isinstance(pair.action, DiscreteSpec | MultiDiscreteSpec):
        return False
    shape = (Actions(pair.action).param_size,)
    if not isinstance(leaf, BoxSpec | MultiBinarySpec) or leaf.shape != shape:
        raise ConfigError(
            f"{_PATH} is the mask of the actions: for {summary(pair.action)} that is a Box or MultiBinary of "
            f"shape {shape}, and the observation space says {summary(leaf)}; give it that shape, or another "
            "name if it is no mask"
        )
    return True


def _embeddings(pair: SpacePair, key: str) -> Embeddings:
    """Where the choices are described.

    Raises:
        ConfigError: there is no such part of the observation, or it does not fit the choices.
    """
    said = f"action_embeddings={key!r}"
    if not isinstance(pair.action, DiscreteSpec):
        raise ConfigError(
            f"{said} describes the choices of a Discrete action space, and this one is "
            f"{summary(pair.action)}; leave it out"
        )
    parts = dict(pair.observation.items) if isinstance(pair.observation, DictSpec) else {}
    leaf = parts.get(key)
    if leaf is None:
        near = difflib.get_close_matches(key, parts, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{said} names a key of a Dict observation, and the observation space is "
            f"{summary(pair.observation)}{hint}"
        )
    if not isinstance(leaf, BoxSpec) or len(leaf.shape) != 2 or leaf.shape[0] != pair.action.n:
        raise ConfigError(
            f"{said}: for {summary(pair.action)} that is a Box of shape ({pair.action.n}, numbers), a row a "
            f"choice, and the observation space says {summary(leaf)}; give it that shape"
        )
    return Embeddings(key, leaf.shape[1])


def _check_hidden(whole: Spec, hidden: Collection[str], needed: Collection[str], share_layers: bool) -> None:
    said = f"critic_only={list(hidden)!r}"
    if share_layers:
        raise ConfigError(
            f"{said} hides a part of the observation from the policy, so the critic cannot be made of the "
            "policy's layers; set vf_share_layers=False"
        )
    if not isinstance(whole, DictSpec):
        raise ConfigError(
            f"{said} names keys of a Dict observation, and the observation space is {summary(whole)}; let "
            'the env return a dict, such as {"observation": ..., "state": ...}'
        )
    legal = [key for key, _ in whole.items if key not in needed]
    unknown = [key for key in hidden if key not in legal]
    if unknown:
        near = difflib.get_close_matches(unknown[0], legal, n=1)
        there = unknown[0] in dict(whole.items)
        own = "the mask" if unknown[0] == MASK else "a description of actions"
        what = f"{own}, which acting needs" if there else "not there"
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{said}: {unknown[0]!r} is {what}; the keys are {', '.join(legal)}{hint}")
    if len(set(hidden)) == len(legal):
        raise ConfigError(f"{said} leaves nothing to act on; leave out one of {', '.join(legal)}")


def _whats(keys: Collection[str]) -> list[str]:
    return ["a mask of actions" if key == MASK else f"a description of actions, {key!r}," for key in keys]


def shown(observations: Sequence[Any], hidden: Collection[str]) -> list[Any]:
    """Observations, as envs give them, without what acting does not read; it may be absent already.

    Of a Tuple, that is said of its parts.
    """

    def without_hidden(obs: Any) -> Any:
        if isinstance(obs, Mapping):
            return {key: part for key, part in obs.items() if key not in hidden}
        return tuple(map(without_hidden, obs)) if isinstance(obs, tuple) else obs

    return [without_hidden(obs) for obs in observations]


def read(sight: Sight, actions: Actions, column: Tree) -> Tree:
    """What acting reads of a column of observations.

    Raises:
        BadLeaf: see :func:`check_mask`.
    """
    if sight.masked:
        check_mask(column[MASK], actions)
    return {key: part for key, part in column.items() if key not in sight.critic_only}


def check_mask(mask: Array, actions: Actions) -> None:
    """Judge that every row of a mask ``(n, P)`` leaves something to choose.

    Raises:
        BadLeaf: E107, with the row.
    """
    choices = actions.leaves[0]
    assert isinstance(choices, Choices)
    starts = choices.index[:, 0]
    legal = np.logical_or.reduceat(mask != 0, starts, axis=1)
    if np.count_nonzero(legal) < legal.size:
        row, choice = np.argwhere(~legal)[0].tolist()
        part = mask[row, starts[choice] :][: int(choices.present[choice].sum())]
        which = f" for choice {choice}" if len(starts) > 1 else ""
        raise BadLeaf("E107", row, _PATH, f"a legal action{which}, marked by 1", f"{len(part)} zeros")


def unanswerable(bad: BadLeaf, env: AsyncEnv, info: SlotInfo, step: int, runner: int) -> SteppeError:
    """The error of an env that asks for an action and forbids all, or of a policy whose action is none.

    To be raised by the caller.
    """
    if bad.code == "E305":
        place = f"runner {runner}, env {info.env}, episode {info.episode}, step {step}, agent {info.agent!r}"
        return SpaceError(f"{bad.leaf}: expected {bad.expected}, got {bad.got}\n  in {place}")
    own = env.get_sub_environments()
    culprit = own[info.env] if info.env < len(own) else env  # envs that step as one have no parts
    fix = "let one action be legal wherever one is asked for, if only one that does nothing"
    return EnvError(
        bad.code,
        f"{bad.leaf}: expected {bad.expected}, got {bad.got}; {fix}",
        env_class=type(getattr(culprit, "unwrapped", culprit)).__name__,
        runner=runner,
        env=info.env,
        episode=info.episode,
        step=step,
        seed=info.seed,
        leaf=bad.leaf,
        agent=info.agent,
    )
