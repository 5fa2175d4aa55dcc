"""Policies that somebody wrote down: plain numpy, never trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import numpy as np

from steppe.errors import ConfigError
from steppe.spaces import BadLeaf, Spec, collect, leaves, map_leaves, rows, take
from steppe.types import Decision, FloatArray, State, Tree, Weights


class Policy(ABC):
    """What acts by a rule of its own: subclass it and give the class, or an object, as a policy of a run.

    One object acts for all agents that are mapped to it, so what it remembers of one belongs in ``state``.
    """

    @abstractmethod
    def act(self, obs: Any, state: Any, rng: np.random.Generator) -> Any:
        """Choose for one observation.

        Args:
            obs: as the env gave it.
            state: what the last call for this agent returned, :meth:`initial_state` at first.
            rng: the runner's stream: what is drawn from it can be reproduced.

        Returns:
            The env's action; ``(action, state)`` where there is a state.
        """

    def initial_state(self) -> Any:
        """Memory of an agent that just appeared: an array or number, dicts and tuples of them; or None."""
        return None

    def act_batch(self, obs: Tree, state: Tree, rng: np.random.Generator) -> Any:
        """Choose for a column ``(n, ...)`` of observations at once; overriding it is for many agents.

        Returns:
            A column of env actions, or ``(actions, state)``; NotImplemented asks :meth:`act` row by row.
        """
        return NotImplemented


@final
class ScriptedPolicy:
    """A :class:`Policy` of the user's as :class:`steppe.types.Policy` has it; its action units are the env's.

    Args:
        id: of the policy, for messages.
        policy: the user's object.
        observation: spec of what it observes.
        action: spec of the env's actions.
    """

    def __init__(self, id: str, policy: Policy, observation: Spec, action: Spec) -> None:
        self._id, self._policy = id, policy
        self.to_env: Callable[[Tree], Tree] = _same  # it chooses env actions
        self.from_env: Callable[[Tree], Tree] = _same
        self.observation = self.acting = observation
        self.action = action
        self.noise_size, self.draws = 2, True
        first = policy.initial_state()
        self._initial = None if first is None else map_leaves(np.asarray, first)

    def load(self, weights: Weights) -> Any:
        """Nothing: it has no weights."""
        return None

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`."""
        n = len(leaves(obs)[0])
        words = [0] if noise is None else noise.view(np.uint32)[0].tolist()
        rng = np.random.default_rng(words)
        found = self._policy.act_batch(obs, state, rng)
        if found is NotImplemented:
            return self._row_by_row(obs, state, rng, n)
        action, state = found if self._initial is not None else (found, None)
        return Decision(self._column(rows(self.action, action)), np.zeros(n, np.float32), state)

    def _row_by_row(self, obs: Tree, state: Tree, rng: np.random.Generator, n: int) -> Decision:
        actions, states = [], []
        for i, one in enumerate(rows(self.observation, obs)):
            if self._initial is None:
                actions.append(self._policy.act(one, None, rng))
                continue
            found = self._policy.act(one, take(state, i), rng)
            if not isinstance(found, tuple) or len(found) != 2:
                raise ConfigError(
                    f"policy {self._id!r}: {type(self._policy).__name__}.act has an initial_state and must "
                    f"return (action, state), not {found!r:.60}"
                )
            actions.append(found[0])
            states.append(map_leaves(np.asarray, found[1]))
        joined = None if self._initial is None else map_leaves(lambda *s: np.stack(s), *states)
        return Decision(self._column(actions), np.zeros(n, np.float32), joined)

    def _column(self, actions: list[Any]) -> Tree:
        try:
            return collect(self.action, actions, None, "action")
        except BadLeaf as bad:
            whose = f"policy {self._id!r}, {type(self._policy).__name__}: {bad.leaf}"
            raise BadLeaf("E305", bad.row, whose, bad.expected, bad.got) from None

    def initial_state(self, n: int) -> Tree:
        """``n`` fresh memories, or None."""
        if self._initial is None:
            return None
        return map_leaves(lambda a: np.repeat(a[None], n, axis=0), self._initial)

    def export(self, weights: Weights) -> State:
        """Nothing that numpy alone could act on: the rule is the user's code."""
        return {"network": {"kind": "scripted"}, "arrays": {}, "exploration": {"kind": "scripted"}}


def _same(action: Tree) -> Tree:
    return action


def scripted(id: str, given: Any, observation: Spec, action: Spec) -> ScriptedPolicy:
    """A policy of a :class:`Policy` subclass or object.

    Raises:
        ConfigError: the class takes arguments.
    """
    if isinstance(given, type):
        try:
            given = given()
        except TypeError as error:
            raise ConfigError(f"policy {id!r}: {given.__name__}() failed, {error}; give an object") from error
    return ScriptedPolicy(id, given, observation, action)
