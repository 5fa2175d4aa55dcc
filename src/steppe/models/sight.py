"""Observations of which not everybody sees everything: masks of actions, and leaves for the critic alone."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steppe.errors import ConfigError, EnvError, SpaceError, SteppeError
from steppe.models.actions import Actions, Choices
from steppe.models.observations import MASK, Sight
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


def sight_of(pair: SpacePair, critic_only: Collection[str], share_layers: bool) -> Sight:
    """Who sees what of an observation.

    Args:
        pair: what is observed and what is chosen.
        critic_only: keys of the observation that acting does not read.
        share_layers: whether the critic is made of the actor's features.

    Raises:
        ConfigError: a mask does not fit the actions, ``critic_only`` names what cannot be hidden, or nothing
            is left to act on.
    """
    whole, masked = pair.observation, _is_masked(pair)
    if critic_only:
        _check_hidden(whole, critic_only, masked, share_layers)
    acting = without(whole, critic_only)
    mask = [MASK] if masked else []
    if isinstance(acting, DictSpec) and [key for key, _ in acting.items] == mask:
        raise ConfigError(
            f"{summary(whole)} holds a mask of actions and nothing else to act on; observe something beside "
            "it, if only a constant"
        )
    actor, critic = without(acting, mask), without(whole, mask)
    return Sight(whole, acting, actor, critic, masked, tuple(sorted(critic_only)))


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


def _check_hidden(whole: Spec, hidden: Collection[str], masked: bool, share_layers: bool) -> None:
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
    legal = [key for key, _ in whole.items if not (masked and key == MASK)]
    unknown = [key for key in hidden if key not in legal]
    if unknown:
        near = difflib.get_close_matches(unknown[0], legal, n=1)
        what = "the mask, which acting needs" if unknown[0] in dict(whole.items) else "not there"
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{said}: {unknown[0]!r} is {what}; the keys are {', '.join(legal)}{hint}")
    if len(set(hidden)) == len(legal):
        raise ConfigError(f"{said} leaves nothing to act on; leave out one of {', '.join(legal)}")


def shown(observations: Sequence[Any], hidden: Collection[str]) -> list[Any]:
    """Observations, as envs give them, without what acting does not read; it may be absent already."""
    return [
        {key: part for key, part in obs.items() if key not in hidden} if isinstance(obs, Mapping) else obs
        for obs in observations
    ]


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
